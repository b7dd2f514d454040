#include "ir.hpp"

namespace sglite {
namespace {

constexpr int MAX_DEPTH = 4096;

class Reader {
public:
    Reader(const int32_t* stream, size_t length) : at_(stream), end_(stream + length) {}

    Grammar read() {
        Grammar grammar;
        const int rules = take();
        grammar.root = take();
        if (rules <= 0 || grammar.root < 0 || grammar.root >= rules) broken();
        rules_ = rules;
        for (int i = 0; i < rules; i++) grammar.rules.push_back(node(grammar, 0));
        if (at_ != end_) broken();
        return grammar;
    }

private:
    Node* node(Grammar& grammar, int depth) {
        if (depth > MAX_DEPTH) throw Refusal{"the grammar is nested too deeply"};
        grammar.nodes.push_back(std::make_unique<Node>());
        Node* made = grammar.nodes.back().get();
        made->op = take();
        made->a = take();
        made->b = take();
        if (made->op < TEXT || made->op > SPECIAL) broken();
        if (made->op == REF && (made->a < 0 || made->a >= rules_)) broken();
        const int data = count();
        made->data.assign(at_, at_ + data);
        at_ += data;
        const int kids = count();
        for (int i = 0; i < kids; i++) made->kids.push_back(node(grammar, depth + 1));
        return made;
    }

    int take() {
        if (at_ == end_) broken();
        return *at_++;
    }

    int count() {
        const int n = take();
        if (n < 0 || n > end_ - at_) broken();
        return n;
    }

    [[noreturn]] static void broken() { throw Refusal{"internal: the grammar stream is malformed"}; }

    const int32_t* at_;
    const int32_t* end_;
    int rules_ = 0;
};

}  // namespace

Grammar read_grammar(const int32_t* stream, size_t length) { return Reader(stream, length).read(); }

void put_utf8(std::string& out, uint32_t c) {
    if (c < 0x80) {
        out += static_cast<char>(c);
    } else if (c < 0x800) {
        out += static_cast<char>(0xC0 | c >> 6);
        out += static_cast<char>(0x80 | (c & 63));
    } else if (c < 0x10000) {
        out += static_cast<char>(0xE0 | c >> 12);
        out += static_cast<char>(0x80 | (c >> 6 & 63));
        out += static_cast<char>(0x80 | (c & 63));
    } else {
        out += static_cast<char>(0xF0 | c >> 18);
        out += static_cast<char>(0x80 | (c >> 12 & 63));
        out += static_cast<char>(0x80 | (c >> 6 & 63));
        out += static_cast<char>(0x80 | (c & 63));
    }
}

bool is_regular(const Node& node) {
    if (node.op == JSON || node.op >= REF) return false;
    for (const Node* kid : node.kids)
        if (!is_regular(*kid)) return false;
    return true;
}

}  // namespace sglite
