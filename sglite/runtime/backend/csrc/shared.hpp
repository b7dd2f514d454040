// Which rows of a batch begin with the same pages.
#pragma once

#include "plan.hpp"

namespace sglite {

// Slots `from` up to `to` that several rows share: numbers `first` up to `first + count` of the rows.
struct SharedSlots {
    int32_t first, count;
    int64_t from, to;
};

// Stretches that are worth computing once for all of their rows: whole pages behind which every row's own tokens begin.
// Stretches of a row follow each other from slot 0; `own_from` gets where its last ends, 0 without any. Puts `rows` in
// an order in which rows that share are together. `group`: lanes that a token has, see Attention.
std::vector<SharedSlots> find_shared(const Plan& plan, int64_t group, std::vector<int32_t>& rows,
                                     std::vector<int64_t>& own_from);

}  // namespace sglite
