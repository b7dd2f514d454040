// How characters are spelled in bytes: UTF-8, or the inside of a JSON string.
#pragma once

#include <vector>

#include "table.hpp"

namespace sglite {

struct ByteEdge {
    int low, high;  // bytes
    int to;
};
using Edges = std::vector<ByteEdge>;  // ascending; neighbours that lead to the same are one

struct Span {
    int low, high;  // code points
    int to;
};

struct Spelling {
    bool json = false;
    bool any_escape = false;  // \uXXXX for every character
    int quote = 0;            // where the closing quote leads, 0 when it may not come
};

// The bytes of one character, for one way to lead on from a state. `to` is a node, or ~n for the n-th state that spans
// lead to: states whose ways differ only in where they lead share a shape.
class Shape {
public:
    // `spans` are ascending and hold no surrogates.
    Shape(std::vector<Span> spans, const Spelling& spelling);
    Edges first;               // of the state itself
    std::vector<Edges> nodes;  // each after those it leads to

private:
    int node(const Edges& edges);
    std::vector<Span> clipped(int low, int high) const;
    void spread(int depth, int first_code, int last_code, int lead, const std::vector<Span>& spans, Edges& edges);
    int whole(int depth, int to);
    int target(int code) const;
    Edges quoted(const Edges& ascii, const Spelling& spelling);
    Edges escapes(bool any);
    Edges control_number();
    Edges any_number();

    std::vector<Span> spans_;
    Interner known_;
    std::vector<int> flat_;
};

}  // namespace sglite
