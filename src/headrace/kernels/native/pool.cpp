#include "pool.h"

#include "local.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace headrace {
namespace {

// Before it sleeps a thread pauses for some microseconds, then offers its core to others for some
// tens: to wake it takes 20 on a virtual machine, as long as many a call.
constexpr int PAUSES = 128;
constexpr int YIELDS = 128;
constexpr int MAX_HELPERS = 256;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <class Ready>
bool soon(const Ready &ready) {
    for (int i = 0; i < PAUSES; ++i) {
        if (ready()) return true;
        relax();
    }
    for (int i = 0; i < YIELDS; ++i) {
        if (ready()) return true;
        std::this_thread::yield();
    }
    return false;
}

// Phase number, tasks and next task in one word: whoever takes a task knows that it belongs to
// the phase it was counted for, however long ago it looked.
constexpr int COUNT_BITS = 20;
constexpr std::uint64_t COUNT_MASK = (1u << COUNT_BITS) - 1;
constexpr std::int64_t MAX_TASKS = 1 << 18;

std::uint64_t next_of(std::uint64_t state) { return state & COUNT_MASK; }
std::uint64_t count_of(std::uint64_t state) { return state >> COUNT_BITS & COUNT_MASK; }
bool has_task(std::uint64_t state) { return next_of(state) < count_of(state); }

}  // namespace

// Regions are never freed: a helper that was held up may still look at one that has ended, and
// then either finds nothing or takes a task of its next use.
struct Region {
    std::atomic<std::uint64_t> state{0};
    std::atomic<std::int64_t> done{0};
    std::atomic<bool> open{false};
    std::atomic<int> sleepers{0};
    void (*call)(const void *, std::int64_t) = nullptr;
    const void *context = nullptr;
    std::mutex mutex;
    std::condition_variable changed;

    // Takes one task and runs it; false when there was none.
    bool help() {
        if (!has_task(state.load(std::memory_order_acquire))) return false;
        const std::uint64_t taken = state.fetch_add(1, std::memory_order_acq_rel);
        if (!has_task(taken)) return false;
        call(context, static_cast<std::int64_t>(next_of(taken)));
        const auto all = static_cast<std::int64_t>(count_of(taken));
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == all) wake();
        return true;
    }

    template <class Ready>
    void wait(const Ready &ready) {
        if (soon(ready)) return;
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1);
        changed.wait(lock, ready);
        sleepers.fetch_sub(1);
    }

    void wake() {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (sleepers.load() == 0) return;
        std::lock_guard<std::mutex> lock(mutex);
        changed.notify_all();
    }
};

namespace {

struct Helper {
    std::atomic<Region *> region{nullptr};
    std::atomic<bool> asleep{false};
    std::vector<int> cores;
    std::vector<int> pinned;
    std::mutex mutex;
    std::condition_variable called;
};

struct Pool {
    std::mutex mutex;
    std::vector<Helper *> idle;
    std::vector<Region *> regions;
    int helpers = 0;
};

// Never destroyed: helpers may outlive main's statics. A child of fork starts with a new one.
Pool *pool = nullptr;
std::once_flag once;

void renew() { pool = new Pool; }

Pool &the_pool() {
    std::call_once(once, [] {
        renew();
#if defined(__linux__)
        pthread_atfork(nullptr, nullptr, renew);
#endif
    });
    return *pool;
}

void pin(Helper &helper) {
#if defined(__linux__)
    if (helper.cores.empty() || helper.cores == helper.pinned) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int core : helper.cores) CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // best effort
    helper.pinned = helper.cores;
#else
    (void)helper;
#endif
}

void help_region(Region &region) {
    const auto active = [&] {
        return has_task(region.state.load(std::memory_order_acquire)) || !region.open.load();
    };
    while (true) {
        while (region.help()) {
        }
        if (!region.open.load()) return;
        region.wait(active);
    }
}

Region *next_region(Helper &helper) {
    const auto called = [&] { return helper.region.load(std::memory_order_acquire) != nullptr; };
    if (soon(called)) return helper.region.load();
    std::unique_lock<std::mutex> lock(helper.mutex);
    helper.asleep.store(true);
    helper.called.wait(lock, called);
    helper.asleep.store(false);
    return helper.region.load();
}

void live(Pool *home, Helper *helper) {
    while (true) {
        Region *region = next_region(*helper);
        pin(*helper);
        help_region(*region);
        helper->region.store(nullptr);
        std::lock_guard<std::mutex> lock(home->mutex);
        home->idle.push_back(helper);
    }
}

void call_helper(Helper &helper, Region *region) {
    helper.region.store(region);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    std::lock_guard<std::mutex> lock(helper.mutex);
    if (helper.asleep.load()) helper.called.notify_one();
}

}  // namespace

Team::Team(int threads, const std::vector<int> &cores) : region_(nullptr) {
    if (threads <= 1) return;
    Pool &home = the_pool();
    std::vector<Helper *> taken;
    {
        std::lock_guard<std::mutex> lock(home.mutex);
        if (home.regions.empty()) home.regions.push_back(new Region);
        region_ = home.regions.back();
        home.regions.pop_back();
        while (static_cast<int>(taken.size()) + 1 < threads) {
            if (home.idle.empty()) {
                if (home.helpers == MAX_HELPERS) break;
                ++home.helpers;
                auto *helper = new Helper;
                std::thread(live, &home, helper).detach();
                taken.push_back(helper);
            } else {
                taken.push_back(home.idle.back());
                home.idle.pop_back();
            }
        }
    }
    region_->open.store(true);
    for (Helper *helper : taken) {
        helper->cores = cores;
        call_helper(*helper, region_);
    }
}

Team::~Team() {
    if (region_ == nullptr) return;
    region_->open.store(false);
    region_->wake();
    Pool &home = the_pool();
    std::lock_guard<std::mutex> lock(home.mutex);
    home.regions.push_back(region_);
}

void Team::run(std::int64_t count, Call call, const void *context) {
    if (region_ == nullptr || count <= 1) {
        for (std::int64_t i = 0; i < count; ++i) call(context, i);
        return;
    }
    struct Part {
        Call call;
        const void *context;
        std::int64_t first;
    };
    for (std::int64_t first = 0; first < count; first += MAX_TASKS) {
        const Part part{call, context, first};
        run_phase(count - first < MAX_TASKS ? count - first : MAX_TASKS,
                  [](const void *p, std::int64_t i) {
                      const auto &part = *static_cast<const Part *>(p);
                      part.call(part.context, part.first + i);
                  },
                  &part);
    }
}

void Team::run_phase(std::int64_t count, Call call, const void *context) {
    Region &region = *region_;
    const std::uint64_t phase = (region.state.load() >> 2 * COUNT_BITS) + 1;
    region.call = call;
    region.context = context;
    region.done.store(0);
    region.state.store(phase << 2 * COUNT_BITS | static_cast<std::uint64_t>(count) << COUNT_BITS,
                       std::memory_order_release);
    region.wake();
    while (region.help()) {
    }
    region.wait([&] { return region.done.load(std::memory_order_acquire) == count; });
}

void *local_memory() {
    struct Memory {
        void *at = std::aligned_alloc(4096, LOCAL_BYTES);
        ~Memory() { std::free(at); }
    };
    static thread_local Memory memory;
    if (memory.at == nullptr) throw std::bad_alloc();
    return memory.at;
}

}  // namespace headrace
