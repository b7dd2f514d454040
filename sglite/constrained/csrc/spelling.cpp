#include "spelling.hpp"

#include <algorithm>

namespace sglite {
namespace {

void append(Edges& edges, int low, int high, int to) {
    if (!edges.empty() && edges.back().high + 1 == low && edges.back().to == to) {
        edges.back().high = high;
    } else {
        edges.push_back({low, high, to});
    }
}

void sort(Edges& edges) {
    std::sort(edges.begin(), edges.end(), [](const ByteEdge& a, const ByteEdge& b) { return a.low < b.low; });
    Edges joined;
    for (const ByteEdge& edge : edges) append(joined, edge.low, edge.high, edge.to);
    edges = std::move(joined);
}

void add_digit(Edges& edges, int value, int to) {
    if (value < 10) {
        edges.push_back({'0' + value, '0' + value, to});
    } else {
        edges.push_back({'A' + value - 10, 'A' + value - 10, to});
        edges.push_back({'a' + value - 10, 'a' + value - 10, to});
    }
}

Edges digits(int low, int high, int to) {
    Edges edges;
    for (int value = low; value <= high; value++) add_digit(edges, value, to);
    sort(edges);
    return edges;
}

}  // namespace

Shape::Shape(std::vector<Span> spans, const Spelling& spelling) : spans_(std::move(spans)) {
    spread(0, 0, 0x7F, 0, clipped(0, 0x7F), first);
    if (spelling.json) first = quoted(first, spelling);
    spread(1, 0x80, 0x7FF, 0xC2, clipped(0x80, 0x7FF), first);
    spread(2, 0, 0xFFFF, 0xE0, clipped(0x800, 0xFFFF), first);
    spread(3, 0, 0x10FFFF, 0xF0, clipped(0x10000, 0x10FFFF), first);
}

int Shape::node(const Edges& edges) {
    flat_.clear();
    for (const ByteEdge& edge : edges) flat_.insert(flat_.end(), {edge.low, edge.high, edge.to});
    const int id = known_.add(flat_.data(), flat_.size());
    if (id == static_cast<int>(nodes.size())) nodes.push_back(edges);
    return id;
}

std::vector<Span> Shape::clipped(int low, int high) const {
    std::vector<Span> found;
    for (const Span& span : spans_)
        if (span.low <= high && span.high >= low)
            found.push_back({std::max(span.low, low), std::min(span.high, high), span.to});
    return found;
}

// Edges for the blocks of 64^depth code points from `first_code` to `last_code`, the first of them having byte `lead`.
void Shape::spread(int depth, int first_code, int last_code, int lead, const std::vector<Span>& spans, Edges& edges) {
    const int size = 1 << 6 * depth;
    auto span = std::lower_bound(spans.begin(), spans.end(), first_code,
                                 [](const Span& each, int wanted) { return each.high < wanted; });
    for (int block = first_code; block <= last_code;) {
        while (span != spans.end() && span->high < block) ++span;
        if (span == spans.end() || span->low > last_code) return;
        if (span->low >= block + size) block += (span->low - block) / size * size;
        const int byte = lead + (block - first_code) / size;
        if (span->low <= block && span->high >= block + size - 1) {
            const int blocks = (std::min(span->high, last_code) + 1 - block) / size;
            append(edges, byte, byte + blocks - 1, whole(depth, span->to));
            block += blocks * size;
        } else {
            Edges inner;
            spread(depth - 1, block, block + size - 1, 0x80, spans, inner);
            append(edges, byte, byte, node(inner));
            block += size;
        }
    }
}

// Any `depth` continuation bytes.
int Shape::whole(int depth, int to) {
    for (; depth > 0; depth--) to = node({{0x80, 0xBF, to}});
    return to;
}

// 0 when the character leads nowhere: what leads somewhere is below 0.
int Shape::target(int code) const {
    const auto span = std::lower_bound(spans_.begin(), spans_.end(), code,
                                       [](const Span& each, int wanted) { return each.high < wanted; });
    return span != spans_.end() && span->low <= code ? span->to : 0;
}

// What takes the place of ASCII inside a JSON string.
Edges Shape::quoted(const Edges& ascii, const Spelling& spelling) {
    Edges edges;
    const auto copy = [&](int low, int high) {
        for (const ByteEdge& edge : ascii)
            if (edge.low <= high && edge.high >= low)
                append(edges, std::max(edge.low, low), std::min(edge.high, high), edge.to);
    };
    copy(0x20, 0x21);
    if (spelling.quote < 0) append(edges, '"', '"', spelling.quote);
    copy(0x23, 0x5B);
    const Edges escaped = escapes(spelling.any_escape);
    if (!escaped.empty()) append(edges, '\\', '\\', node(escaped));
    copy(0x5D, 0x7F);
    return edges;
}

Edges Shape::escapes(bool any) {
    constexpr int SHORT[][2] = {{'"', '"'}, {'/', '/'},   {'\\', '\\'}, {'b', '\b'},
                                {'f', '\f'}, {'n', '\n'}, {'r', '\r'},  {'t', '\t'}};
    Edges edges;
    for (const auto& [byte, code] : SHORT)
        if (target(code) < 0 && (any || code != '/')) edges.push_back({byte, byte, target(code)});
    const Edges number = any ? any_number() : control_number();
    if (!number.empty()) edges.push_back({'u', 'u', node(number)});
    sort(edges);
    return edges;
}

// "00", then the two digits of a control character.
Edges Shape::control_number() {
    Edges third;
    for (int high = 0; high < 2; high++) {
        Edges last;
        for (int low = 0; low < 16; low++)
            if (target(16 * high + low) < 0) add_digit(last, low, target(16 * high + low));
        sort(last);
        if (!last.empty()) third.push_back({'0' + high, '0' + high, node(last)});
    }
    sort(third);
    if (third.empty()) return {};
    const int second = node(third);
    return {{'0', '0', node({{'0', '0', second}})}};
}

// Any four digits, those of a high surrogate followed by those of a low one.
Edges Shape::any_number() {
    const int to = target('a');
    if (to >= 0) return {};
    const int one = node(digits(0, 15, to)), two = node(digits(0, 15, one)), three = node(digits(0, 15, two));
    const int low = node(digits(13, 13, node(digits(12, 15, two))));
    const int slash = node({{'\\', '\\', node({{'u', 'u', low}})}});
    const int high = node(digits(0, 15, node(digits(0, 15, slash))));
    Edges after_d;
    for (int value = 0; value < 12; value++) add_digit(after_d, value, value < 8 ? two : high);
    sort(after_d);
    const int surrogate = node(after_d);
    Edges edges;
    for (int value = 0; value < 16; value++) add_digit(edges, value, value == 13 ? surrogate : three);
    sort(edges);
    return edges;
}

}  // namespace sglite
