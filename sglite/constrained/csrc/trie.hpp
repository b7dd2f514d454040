// The vocabulary as a trie in preorder: to skip a subtree is one assignment, to visit it one linear scan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sglite {

struct Trie {
    // What a scan reads of a node, side by side.
    struct Step {
        int32_t end;
        int32_t first_token;
        uint16_t depth;
        uint8_t byte;
    };
    std::vector<Step> steps;      // [nodes + 1], the last one for its first_token
    std::vector<uint8_t> byte;    // of the edge into the node; node 0 is the root
    std::vector<int32_t> end;     // first node after the subtree
    std::vector<int32_t> parent;
    std::vector<int32_t> first_token;  // [nodes + 1], into `tokens`
    std::vector<int32_t> tokens;
    std::vector<int32_t> depth;
    std::vector<std::vector<int32_t>> with_byte;  // [256], nodes by their byte
    int32_t root_child[256];
    int32_t max_depth = 0;

    int32_t size() const { return static_cast<int32_t>(byte.size()); }
    bool has_tokens(int32_t node) const { return first_token[node] != first_token[node + 1]; }
    // The child of `node` over `value`, -1 when there is none.
    int32_t child(int32_t node, uint8_t value) const;
};

struct Vocabulary {
    std::vector<std::string> pieces;  // by id; empty: no text
    std::vector<int32_t> eos;
    int32_t size = 0;   // of the logits
    int32_t words = 0;
    Trie trie;

    Vocabulary(std::vector<std::string> pieces, std::vector<int32_t> eos);
    bool is_eos(int32_t id) const;
};

}  // namespace sglite
