// A batch as attention sees it, and the pieces that its work is cut into.
#pragma once

#include <vector>

#include "engine.hpp"

namespace sglite {

struct Plan {
    // The pieces for one kind of layer.
    struct Cut {
        int64_t heads, kv_heads, v_dim, window;
        std::vector<AttentionPiece> pieces;
    };

    std::vector<int32_t> tables;
    std::vector<int64_t> table_from, query_from, starts;
    int64_t page_size;
    std::vector<Cut> cuts;

    int64_t rows() const { return static_cast<int64_t>(starts.size()); }
    // Made once for all layers of a kind.
    const Cut& cut(int64_t heads, int64_t kv_heads, int64_t v_dim, int64_t window, int threads);
};

}  // namespace sglite
