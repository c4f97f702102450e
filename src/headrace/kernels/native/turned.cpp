#include "turned.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace headrace {
namespace {

constexpr std::int64_t GROUPS_EACH = 16;  // groups of rows that a task turns

constexpr std::size_t WORDS = TURNED_BYTES / sizeof(std::uint32_t);  // of a line of a row

void turn_group(char *group, std::size_t row_bytes, std::vector<std::uint32_t> &stored) {
    const std::size_t row_words = row_bytes / sizeof(std::uint32_t);
    std::memcpy(stored.data(), group, TURNED_ROWS * row_bytes);
    for (std::size_t at = 0; at < row_words; at += WORDS, group += TURNED_ROWS * TURNED_BYTES) {
        std::uint32_t block[WORDS][TURNED_ROWS];
        for (std::size_t row = 0; row < TURNED_ROWS; ++row) {
            const std::uint32_t *from = stored.data() + row * row_words + at;
            for (std::size_t word = 0; word < WORDS; ++word) block[word][row] = from[word];
        }
        std::memcpy(group, block, sizeof block);
    }
}

// Of sixteen rows the first scale, then the second of all, and so on.
template <class Item>
void turn_scales(Item *group, std::int64_t groups) {
    const std::vector<Item> stored(group, group + TURNED_ROWS * groups);
    for (std::int64_t row = 0; row < TURNED_ROWS; ++row) {
        for (std::int64_t g = 0; g < groups; ++g) {
            group[g * TURNED_ROWS + row] = stored[row * groups + g];
        }
    }
}

}  // namespace

void turn(Team &team, const Weight &w, void *data, void *scales) {
    const std::int64_t groups = turnable(w.rows, w.row_bytes) / TURNED_ROWS;
    const std::size_t group_bytes = TURNED_ROWS * w.row_bytes;
    team.share((groups + GROUPS_EACH - 1) / GROUPS_EACH, [&](std::int64_t i) {
        std::vector<std::uint32_t> stored(group_bytes / sizeof(std::uint32_t));
        const std::int64_t last = std::min(groups, (i + 1) * GROUPS_EACH);
        for (std::int64_t g = i * GROUPS_EACH; g < last; ++g) {
            turn_group(static_cast<char *>(data) + static_cast<std::size_t>(g) * group_bytes,
                       w.row_bytes, stored);
            if (scales == nullptr) continue;
            const std::int64_t first = g * TURNED_ROWS * w.groups();
            if (w.scales.format == Format::f32) {
                turn_scales(static_cast<float *>(scales) + first, w.groups());
            } else {
                turn_scales(static_cast<std::uint16_t *>(scales) + first, w.groups());
            }
        }
    });
}

}  // namespace headrace
