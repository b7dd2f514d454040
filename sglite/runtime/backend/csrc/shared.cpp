#include "shared.hpp"

#include <algorithm>

namespace sglite {
namespace {

constexpr int64_t kSharedLanes = 8;     // fewer are not worth packing
constexpr int64_t kSharedWork = 1024;  // slots times lanes; less is not worth putting together what two pieces found

// Rows that are known to share `pages`, of which those from `from` on are still to be computed.
struct Range {
    int32_t first, count;
    int64_t pages, from;
};

struct Search {
    const Plan& plan;
    const int64_t group;
    std::vector<int32_t>& rows;
    std::vector<int64_t>& own_from;
    std::vector<SharedSlots> found;
    std::vector<Range> open;

    const int32_t* table(int32_t row) const { return plan.tables.data() + plan.table_from[row]; }
    // Pages that only hold what came before the row's tokens.
    int64_t whole_pages(int32_t row) const { return plan.starts[row] / plan.page_size; }

    int64_t common_pages(const Range& range) const {
        const int32_t row = rows[range.first];
        int64_t pages = whole_pages(row);
        for (int32_t i = 1; i < range.count; i++) {
            const int32_t other = rows[range.first + i];
            const int64_t most_pages = least(pages, whole_pages(other));
            for (pages = range.pages; pages < most_pages && table(row)[pages] == table(other)[pages];) pages++;
        }
        return pages;
    }

    // Opens the ranges of rows that share one more page.
    void part(const Range& range) {
        const auto begin = rows.begin() + range.first, end = begin + range.count;
        const auto longer = std::partition(begin, end, [&](int32_t row) { return whole_pages(row) <= range.pages; });
        const auto next = [&](int32_t row) { return table(row)[range.pages]; };
        std::sort(longer, end, [&](int32_t a, int32_t b) { return next(a) < next(b); });
        for (auto first = longer; first != end;) {
            const auto last = std::find_if(first, end, [&](int32_t row) { return next(row) != next(*first); });
            if (last - first > 1)
                open.push_back({static_cast<int32_t>(first - rows.begin()), static_cast<int32_t>(last - first),
                                range.pages + 1, range.from});
            first = last;
        }
    }

    void look(Range range) {
        range.pages = common_pages(range);
        int64_t tokens = 0;
        for (int32_t i = 0; i < range.count; i++) tokens += plan.queries(rows[range.first + i]);
        const int64_t slots = (range.pages - range.from) * plan.page_size, lanes = tokens * group;
        if (lanes >= kSharedLanes && slots * lanes >= kSharedWork) {
            found.push_back(
                {range.first, range.count, range.from * plan.page_size, range.pages * plan.page_size});
            range.from = range.pages;
        }
        for (int32_t i = 0; i < range.count; i++) own_from[rows[range.first + i]] = range.from * plan.page_size;
        part(range);
    }
};

}  // namespace

std::vector<SharedSlots> find_shared(const Plan& plan, int64_t group, std::vector<int32_t>& rows,
                                     std::vector<int64_t>& own_from) {
    own_from.assign(plan.rows(), 0);
    Search search{plan, group, rows, own_from, {}, {}};
    search.part({0, static_cast<int32_t>(rows.size()), 0, 0});
    while (!search.open.empty()) {
        const Range range = search.open.back();
        search.open.pop_back();
        search.look(range);
    }
    return std::move(search.found);
}

}  // namespace sglite
