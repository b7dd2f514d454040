// The grammar of sglite/constrained/grammar.py as it crosses into native code: a stream of int32, one tree a rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sglite {

// A constraint that will not be executed, with the reason in one line. The only exception this code throws.
struct Refusal {
    std::string reason;
    bool empty = false;  // no text matches at all
};

enum Op : int {
    TEXT = 0,      // data: code points
    CHARS = 1,     // data: low, high, low, high, ... sorted, disjoint
    SEQ = 2,       // kids
    ALT = 3,       // kids
    REPEAT = 4,    // a: low, b: high or -1; one kid
    AND = 5,       // kids, regular
    NOT = 6,       // one kid, regular
    JSON = 7,      // one kid, regular: a JSON string whose value it describes
    REF = 8,       // a: rule
    SHUFFLE = 9,   // a: low, b: high or -1; data: indices of the required; kids: items, separator, and rest if any (data[0] = 1)
    SCOPE = 10,    // one kid
    UNIQUE = 11,   // a: 1 when safe; one kid
    GUARD = 12,    // a: number of the check; one kid
    SPECIAL = 13,  // data: token ids
};

struct Node {
    int op = SEQ;
    int a = 0;
    int b = 0;
    std::vector<int> data;
    std::vector<Node*> kids;
};

struct Grammar {
    std::vector<Node*> rules;
    int root = 0;
    std::vector<std::unique_ptr<Node>> nodes;  // owns them all
};

// Reads a stream: [rules, root, node...], each node [op, a, b, n_data, data..., n_kids, kid...].
Grammar read_grammar(const int32_t* stream, size_t length);

// Whether a subtree is regular: no rule, and nothing that looks at the text or at token ids.
bool is_regular(const Node& node);

// Appends a character as UTF-8.
void put_utf8(std::string& out, uint32_t c);

}  // namespace sglite
