// A batch as attention sees it, and the pieces that its work is cut into.
#pragma once

#include <vector>

#include "engine.hpp"

namespace sglite {

struct Plan {
    // The pieces for one kind of layer; see Attention for what the lists are.
    struct Cut {
        int64_t heads, kv_heads, v_dim, window;
        std::vector<AttentionPiece> pieces;
        std::vector<ReadyStretch> stretches;
        std::vector<int32_t> order, part_from, parted;
        int64_t slots_read;  // keys that a layer reads, of all its KV heads
    };

    std::vector<int32_t> tables, ends;
    std::vector<int64_t> table_from, query_from, starts;
    int64_t page_size;
    std::vector<Cut> cuts;

    Plan(int64_t rows, const int32_t* table_pages, const int64_t* row_tables, const int64_t* row_queries,
         const int64_t* row_starts, int64_t size);

    int64_t rows() const { return static_cast<int64_t>(starts.size()); }
    int64_t tokens() const { return query_from.back(); }
    int64_t queries(int64_t row) const { return query_from[row + 1] - query_from[row]; }
    // Made once for all layers of a kind.
    const Cut& cut(int64_t heads, int64_t kv_heads, int64_t v_dim, int64_t window, int threads);
};

}  // namespace sglite
