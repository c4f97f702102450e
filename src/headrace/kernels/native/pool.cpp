#include "pool.h"

#include "local.h"
#include "prefetch.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

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
    std::exception_ptr failure;  // the first of a phase; under the mutex
    void (*call)(const void *, std::int64_t) = nullptr;
    const void *context = nullptr;
    std::mutex mutex;
    std::condition_variable changed;

    // Takes one task and runs it; false when there was none.
    bool help() {
        if (!has_task(state.load(std::memory_order_acquire))) return false;
        const std::uint64_t taken = state.fetch_add(1, std::memory_order_acq_rel);
        if (!has_task(taken)) return false;
        try {
            call(context, static_cast<std::int64_t>(next_of(taken)));
        } catch (...) {  // for whoever runs the phase, once nobody works on it
            std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
        }
        const auto all = static_cast<std::int64_t>(count_of(taken));
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == all) wake();
        return true;
    }

    template <class Ready>
    void wait(const Ready &ready) {
        if (soon(ready)) return;
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1);
        std::atomic_thread_fence(std::memory_order_seq_cst);
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

// A helper is free again as soon as the team that called it has ended, even if it has not looked
// up yet: it finds the number of the last call, and that one's region.
struct Helper {
    std::atomic<std::uint64_t> calls{0};
    std::atomic<Region *> region{nullptr};
    std::atomic<bool> asleep{false};
    std::vector<int> cores;  // where it was last told to run
    std::mutex mutex;
    std::condition_variable called;
    std::thread::native_handle_type thread{};

    // What to fetch while nothing else is to be done; `errand` says that there is something.
    std::atomic<bool> errand{false};
    const char *fetch = nullptr;
    std::size_t fetch_bytes = 0;

    bool called_after(std::uint64_t served) const {
        return calls.load(std::memory_order_acquire) != served;
    }
};

namespace {

struct Pool {
    std::mutex mutex;
    std::vector<Helper *> free;  // the last one used at the end
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

// By whoever calls, not by the helper itself: it wakes where it belongs, and need not first get
// its turn on the core that it should leave.
void place(Helper &helper, const std::vector<int> &cores) {
    if (cores.empty() || cores == helper.cores) return;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int core : cores) CPU_SET(core, &set);
    pthread_setaffinity_np(helper.thread, sizeof set, &set);  // best effort
#endif
    helper.cores = cores;
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

// Asks for memory until the helper is called. Nothing is loaded: the memory may be gone.
void run_errand(Helper &helper, std::uint64_t served) {
    constexpr std::size_t line = 64, piece = 64 * line;
    const char *at = nullptr, *end = nullptr;
    {
        std::lock_guard<std::mutex> lock(helper.mutex);
        helper.errand.store(false);
        at = helper.fetch;
        end = at + helper.fetch_bytes;
    }
    for (; at < end && !helper.called_after(served); at += piece) {
        for (std::size_t i = 0; i < piece; i += line) prefetch(at + i);
    }
}

// The number of the next call, once there is one.
std::uint64_t next_call(Helper &helper, std::uint64_t served) {
    const auto called = [&] { return helper.called_after(served); };
    while (soon([&] { return called() || helper.errand.load(std::memory_order_acquire); })) {
        if (called()) return helper.calls.load();
        run_errand(helper, served);
    }
    std::unique_lock<std::mutex> lock(helper.mutex);
    helper.asleep.store(true);
    helper.called.wait(lock, called);
    helper.asleep.store(false);
    return helper.calls.load();
}

void live(Helper *helper) {
    std::uint64_t served = 0;
    while (true) {
        served = next_call(*helper, served);
        help_region(*helper->region.load());
    }
}

void call_helper(Helper &helper, Region *region) {
    helper.errand.store(false);
    helper.region.store(region);
    helper.calls.fetch_add(1);
    std::lock_guard<std::mutex> lock(helper.mutex);
    if (helper.asleep.load()) helper.called.notify_one();
}

// One more free helper; false where there may be no more threads, or no memory for one.
bool add_helper(Pool &home) {
    if (home.helpers == MAX_HELPERS) return false;
    try {
        home.free.reserve(static_cast<std::size_t>(home.helpers) + 1);
        auto helper = std::make_unique<Helper>();
        std::thread thread(live, helper.get());
        helper->thread = thread.native_handle();
        thread.detach();
        home.free.push_back(helper.release());
    } catch (const std::exception &) {
        return false;
    }
    ++home.helpers;
    return true;
}

}  // namespace

Team::Team(int threads, const std::vector<int> &cores) : region_(nullptr) {
    if (threads <= 1) return;
    Pool &home = the_pool();
    helpers_.reserve(static_cast<std::size_t>(std::min(threads, MAX_HELPERS)));
    {
        std::lock_guard<std::mutex> lock(home.mutex);
        if (home.regions.empty()) home.regions.push_back(new Region);
        region_ = home.regions.back();
        home.regions.pop_back();
        while (static_cast<int>(helpers_.size()) + 1 < threads) {
            if (home.free.empty() && !add_helper(home)) break;
            helpers_.push_back(home.free.back());
            home.free.pop_back();
        }
    }
    region_->open.store(true);
    for (Helper *helper : helpers_) {
        place(*helper, cores);
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
    home.free.insert(home.free.end(), helpers_.rbegin(), helpers_.rend());
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
    std::lock_guard<std::mutex> lock(region.mutex);
    if (region.failure) std::rethrow_exception(std::exchange(region.failure, nullptr));
}

void fetch(const void *data, std::size_t bytes, int threads) {
    Pool &home = the_pool();
    std::lock_guard<std::mutex> lock(home.mutex);
    std::vector<Helper *> awake;
    for (auto at = home.free.rbegin(); at != home.free.rend(); ++at) {
        if (static_cast<int>(awake.size()) + 1 >= threads) break;
        if (!(*at)->asleep.load()) awake.push_back(*at);
    }
    const char *from = static_cast<const char *>(data);
    for (std::size_t i = 0; i < awake.size(); ++i) {
        const std::size_t first = bytes * i / awake.size(), last = bytes * (i + 1) / awake.size();
        std::lock_guard<std::mutex> held(awake[i]->mutex);
        awake[i]->fetch = from + first;
        awake[i]->fetch_bytes = last - first;
        awake[i]->errand.store(true, std::memory_order_release);
    }
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
