#include "trie.hpp"

#include <algorithm>
#include <numeric>

namespace sglite {

constexpr size_t MAX_PIECE = 60000;  // bytes of a token that can be chosen

int32_t Trie::child(int32_t node, uint8_t value) const {
    if (node == 0) return root_child[value];
    for (int32_t at = node + 1; at < end[node]; at = end[at])
        if (byte[at] == value) return at;
    return -1;
}

namespace {

void add_node(Trie& trie, uint8_t value, int32_t parent, int32_t depth) {
    trie.byte.push_back(value);
    trie.parent.push_back(parent);
    trie.depth.push_back(depth);
    trie.end.push_back(0);
    trie.first_token.push_back(static_cast<int32_t>(trie.tokens.size()));
    trie.max_depth = std::max(trie.max_depth, depth);
}

Trie build(const std::vector<std::string>& pieces) {
    std::vector<int32_t> order;
    for (size_t id = 0; id < pieces.size(); id++)
        if (!pieces[id].empty()) order.push_back(static_cast<int32_t>(id));
    std::sort(order.begin(), order.end(), [&](int32_t l, int32_t r) {
        const int difference = pieces[l].compare(pieces[r]);
        return difference ? difference < 0 : l < r;
    });
    Trie trie;
    add_node(trie, 0, -1, 0);
    std::vector<int32_t> path{0};  // nodes from the root to the last token
    std::string last;
    for (const int32_t id : order) {
        const std::string& piece = pieces[id];
        size_t common = 0;
        while (common < last.size() && common < piece.size() && last[common] == piece[common]) common++;
        while (path.size() > common + 1) {
            trie.end[path.back()] = trie.size();
            path.pop_back();
        }
        for (size_t i = common; i < piece.size(); i++) {
            const int32_t node = trie.size();
            add_node(trie, static_cast<uint8_t>(piece[i]), path.back(), static_cast<int32_t>(i) + 1);
            path.push_back(node);
        }
        trie.tokens.push_back(id);
        last = piece;
    }
    for (const int32_t node : path) trie.end[node] = trie.size();
    trie.first_token.push_back(static_cast<int32_t>(trie.tokens.size()));
    trie.with_byte.resize(256);
    std::fill(trie.root_child, trie.root_child + 256, -1);
    for (int32_t node = 1; node < trie.size(); node++) {
        trie.with_byte[trie.byte[node]].push_back(node);
        if (trie.parent[node] == 0) trie.root_child[trie.byte[node]] = node;
    }
    for (int32_t node = 0; node < trie.size(); node++)
        trie.steps.push_back({trie.end[node], trie.first_token[node], static_cast<uint16_t>(trie.depth[node]), trie.byte[node]});
    trie.steps.push_back({0, trie.first_token.back(), 0, 0});
    return trie;
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> all, std::vector<int32_t> ends)
    : pieces(std::move(all)), eos(std::move(ends)) {
    size = static_cast<int32_t>(pieces.size());
    words = (size + 31) / 32;
    for (const int32_t id : eos) pieces[id].clear();
    for (std::string& piece : pieces)
        if (piece.size() > MAX_PIECE) piece.clear();
    trie = build(pieces);
}

bool Vocabulary::is_eos(int32_t id) const { return std::find(eos.begin(), eos.end(), id) != eos.end(); }

}  // namespace sglite
