// Masks: which tokens may follow a state.
//
// Tokens that stay inside a leaf are known by leaf and state alone, once for all grammars. What is left are the tokens
// that leave it: the trie is entered below the nodes where the leaf may end, with the state that follows it.
#include <algorithm>

#include "machine.hpp"

namespace sglite {
namespace {

constexpr int MAX_NESTED_ENDS = 64;
constexpr size_t FEW = 1024;

void set(uint32_t* mask, int32_t id) { mask[id >> 5] |= 1u << (id & 31); }

void set_all(uint32_t* mask, const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) set(mask, id);
}

void set_bits(uint32_t* mask, const std::vector<uint32_t>& bits) {
    for (size_t i = 0; i < bits.size(); i++) mask[i] |= bits[i];
}

// Appends to the text what leads from the root to a node, and takes it back.
class PathText {
public:
    PathText(std::string& text, const Trie& trie, int32_t node, bool wanted) : text_(text), before_(text.size()) {
        if (!wanted) return;
        text_.resize(before_ + trie.depth[node]);
        for (size_t at = text_.size(); node; node = trie.parent[node]) text_[--at] = static_cast<char>(trie.byte[node]);
    }
    ~PathText() { text_.resize(before_); }

private:
    std::string& text_;
    size_t before_;
};

}  // namespace

void Program::fill(int state, Context& context, uint32_t* mask, int64_t room) {
    std::fill(mask, mask + vocab->words, 0u);
    State& here = *states_[state];
    if (here.mask && room < 0) {
        if (here.mask->bits.empty()) set_all(mask, here.mask->ids);
        else std::copy(here.mask->bits.begin(), here.mask->bits.end(), mask);
        return;
    }
    const bool looked = context.looked;
    context.looked = false;
    if (room < 0) {
        fill_state(state, context, {mask}, 0);
    } else {
        walk(0, state, context, {mask}, room);
        fill_special(state, context, mask, room, 0);
    }
    if (accepting(state, context))
        for (const int32_t id : vocab->eos) set(mask, id);
    if (room < 0) here.looked |= context.looked;
    if (!context.looked && room < 0 && mask_bytes_ < limits_.mask_bytes) {
        auto made = std::make_unique<Mask>();
        size_t count = 0;
        for (int32_t i = 0; i < vocab->words; i++) count += __builtin_popcount(mask[i]);
        if (count > FEW) {
            made->bits.assign(mask, mask + vocab->words);
        } else {
            for (int32_t i = 0; i < vocab->words; i++)
                for (uint32_t word = mask[i]; word; word &= word - 1) made->ids.push_back(32 * i + __builtin_ctz(word));
        }
        mask_bytes_ += 4 * (made->bits.size() + made->ids.size());
        here.mask = std::move(made);
    }
    context.looked |= looked;
}

// The special tokens after which `room` bytes are enough.
void Program::fill_special(int state, Context& context, uint32_t* mask, int64_t room, int depth) {
    for (size_t i = 0; i < states_[state]->configs.size(); i++) {
        const Config config = states_[state]->configs[i];
        const Leaf& leaf = *leaves_[config.leaf];
        if (leaf.kind != Leaf::SPECIAL_IDS && (!leaf.accepting(config.state) || depth >= MAX_NESTED_ENDS)) continue;
        const int after = advance(config.level, context.text.size(), context);
        if (after == DEAD) continue;
        if (leaf.kind != Leaf::SPECIAL_IDS) fill_special(after, context, mask, room, depth + 1);
        else if (states_[after]->distance <= static_cast<uint64_t>(room)) set_all(mask, leaf.special);
    }
}

void Program::put(Sink out, int32_t node) {
    const Trie& trie = vocab->trie;
    for (int32_t t = trie.first_token[node]; t < trie.first_token[node + 1]; t++) {
        if (out.ids) out.ids->push_back(trie.tokens[t]);
        else set(out.mask, trie.tokens[t]);
    }
}

void Program::fill_state(int state, Context& context, Sink out, int depth) {
    for (size_t i = 0; i < states_[state]->configs.size(); i++) {
        const Config config = states_[state]->configs[i];
        const Leaf& leaf = *leaves_[config.leaf];
        switch (leaf.kind) {
            case Leaf::LITERAL: fill_literal(config, context, out); break;
            case Leaf::TABLE: fill_table(config, context, out); break;
            case Leaf::COUNTED: fill_counted(config, context, out); break;
            default:
                if (advance(config.level, context.text.size(), context) != DEAD) set_all(out.mask, leaf.special);
        }
        if (leaf.accepting(config.state) && depth < MAX_NESTED_ENDS) {
            const int after = advance(config.level, context.text.size(), context);
            if (after != DEAD) fill_state(after, context, out, depth + 1);
        }
    }
}

// The state after a level when it does not depend on the text, else -2.
int Program::after_if_pure(int level, Context& context) {
    const bool looked = context.looked;
    context.looked = false;
    const size_t pending = context.pending.size();
    const bool unknown = context.unknown;
    const int after = advance(level, context.text.size(), context);
    const bool pure = !context.looked;
    // A question about a value that has not ended is not meant.
    context.pending.resize(pending);
    context.unknown = unknown;
    context.looked = looked || !pure;
    return pure ? after : -2;
}

// The tokens at and below a node where a leaf ends. `after`: the state that follows, -2 when the text decides.
void Program::leave_at(int32_t node, bool closes, int level, int after, Context& context, Sink out) {
    const Trie& trie = vocab->trie;
    if (after == DEAD || (!closes && trie.end[node] == node + 1)) return;
    PathText path(context.text, trie, node, positional_);
    if (after == -2) after = advance(level, context.text.size(), context);
    if (after == DEAD) return;
    if (closes) put(out, node);
    walk(node, after, context, out, -1);
}

void Program::fill_literal(const Config& config, Context& context, Sink out) {
    const Trie& trie = vocab->trie;
    const std::string& text = leaves_[config.leaf]->literal;
    int32_t node = 0;
    for (size_t at = config.state; at < text.size(); at++) {
        node = trie.child(node, static_cast<uint8_t>(text[at]));
        if (node < 0) return;
        if (at + 1 < text.size()) put(out, node);
    }
    leave_at(node, true, config.level, after_if_pure(config.level, context), context, out);
}

void Program::fill_table(const Config& config, Context& context, Sink out) {
    const auto view = leaves_[config.leaf]->view(config.state, *vocab);
    if (view->bits.empty()) set_all(out.mask, view->ids);
    else set_bits(out.mask, view->bits);
    if (view->exits.empty() && !view->plain) return;
    const int after = after_if_pure(config.level, context);
    if (after == DEAD) return;
    if (view->plain && leave_plain(*view, config, after, context, out)) return;
    if (view->plain) {
        // Where the text decides, one by one.
        const auto& missing = view->missing;
        for (const auto& exit : view->plain->exits)
            if (!std::binary_search(missing.begin(), missing.end(), exit.node))
                leave_at(exit.node, exit.closes, config.level, after, context, out);
    }
    leave_view(*view, config, after, context, out);
}

// The exits that a view lists itself.
void Program::leave_view(const LeafView& view, const Config& config, int after, Context& context, Sink out) {
    const Trie& trie = vocab->trie;
    if (positional_ || after == -2 || view.exit_bits.empty()) {
        for (const auto& exit : view.exits) leave_at(exit.node, exit.closes, config.level, after, context, out);
        return;
    }
    for (const auto& exit : view.exits)
        if (exit.closes) put(out, exit.node);
    // Many exits: look for them above the few bytes that may follow.
    for (int byte = 0; byte < 256; byte++) {
        context.text.push_back(static_cast<char>(byte));
        const int to = step(after, static_cast<uint8_t>(byte), context);
        context.text.pop_back();
        if (to == DEAD) continue;
        for (const int32_t node : trie.with_byte[byte]) {
            const int32_t above = trie.parent[node];
            if (!(view.exit_bits[above >> 6] >> (above & 63) & 1)) continue;
            put(out, node);
            walk(node, to, context, out, -1);
        }
    }
}

// The exits of a string that is like every other from here on, but for some. False when they have to be tried one by one.
bool Program::leave_plain(const LeafView& view, const Config& config, int after, Context& context, Sink out) {
    std::vector<int32_t> gone;
    const int known = after == -2 ? assume(config.level, context) : after;
    if (known < 0 || (after == -2 && !repeated(config, context, gone))) return false;
    auto [found, fresh] = leaving_.try_emplace({leaves_[config.leaf]->plain.get(), -1, known});
    if (fresh) {
        for (const auto& exit : view.plain->exits) {
            std::vector<int32_t> ids;
            leave_at(exit.node, exit.closes, config.level, known, context, {nullptr, &ids});
            if (!ids.empty()) found->second.emplace_back(exit.node, std::move(ids));
        }
    }
    const auto& missing = view.missing;
    for (const auto& [node, ids] : found->second)
        if (!std::binary_search(missing.begin(), missing.end(), node) &&
            std::find(gone.begin(), gone.end(), node) == gone.end())
            set_all(out.mask, ids);
    leave_view(view, config, after, context, out);
    return true;
}

// The nodes where the string in progress would end as one that there is already. False when its spelling leaves doubt.
bool Program::repeated(const Config& config, Context& context, std::vector<int32_t>& nodes) {
    const Frame& frame = levels_[config.level]->frames[0];
    if (levels_[frame.below]->scope < 0) return true;
    if (frame.data > context.committed) return false;
    const std::string begun = context.text.substr(std::min<size_t>(frame.data + 1, context.text.size()));
    const auto odd = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' || c == '/'; };
    if (std::any_of(begun.begin(), begun.end(), odd)) return false;
    for (const std::string& entry : earlier(frame, context)) {
        if (entry[0] != '"') continue;
        const std::string name = entry.substr(entry.find(':') + 1);
        if (name.compare(0, begun.size(), begun) != 0) continue;
        const std::string rest = name.substr(begun.size());
        if (std::any_of(rest.begin(), rest.end(), odd)) return false;
        int32_t node = 0;
        for (const char byte : rest + '"')
            if (node >= 0) node = vocab->trie.child(node, static_cast<uint8_t>(byte));
        if (node >= 0) nodes.push_back(node);
    }
    return true;
}

void Program::fill_counted(const Config& config, Context& context, Sink out) {
    const Trie& trie = vocab->trie;
    const Leaf& leaf = *leaves_[config.leaf];
    const int32_t sub = config.state % leaf.base->dfa.states;
    const int64_t count = config.state / leaf.base->dfa.states;
    const int after = after_if_pure(config.level, context);
    CountedView& view = counted_view(*leaf.base, sub, *vocab);
    const int64_t left = leaf.high < 0 ? INT32_MAX : leaf.high - count;
    // Tokens inside, by the characters they begin. A token that brings the last possible character ends the value: what
    // the text says about that is asked token by token.
    const bool ask_last = !leaf.base->json && leaf.high >= 0 && after == -2;
    const int64_t upto = std::min<int64_t>(left - ask_last, static_cast<int64_t>(view.by_need.size()) - 1);
    if (upto >= 0) {
        std::lock_guard<std::mutex> guard(leaf.base->lock);
        auto& bits = view.upto[upto];
        if (bits.empty()) {
            bits.assign(vocab->words, 0);
            for (int64_t need = 0; need <= upto; need++) set_all(bits.data(), view.by_need[need]);
        }
        set_bits(out.mask, bits);
    }
    if (ask_last && left < static_cast<int64_t>(view.by_need.size()))
        for (const int32_t id : view.by_need[left]) {
            int32_t at = config.state;
            for (const char byte : vocab->pieces[id]) at = leaf.next(at, static_cast<uint8_t>(byte));
            if (at != DEAD && !leaf.closed(at)) set(out.mask, id);
        }
    if (after == DEAD) return;
    if (leaf.base->json && after >= 0) {
        leave_counted(view, config, after, context, out);
        return;
    }
    const auto ends_here = [&](int64_t chars) { return count + chars >= leaf.low && chars <= left; };
    if (positional_ || after == -2 || view.chars_at.empty()) {
        for (size_t i = 0; i < view.exits.size(); i++) {
            const int64_t chars = view.exit_chars[i];
            const bool closes = leaf.base->json || (leaf.high >= 0 && chars == left);
            if (ends_here(chars)) leave_at(view.exits[i], closes, config.level, after, context, out);
        }
        return;
    }
    for (int byte = 0; byte < 256; byte++) {
        context.text.push_back(static_cast<char>(byte));
        const int to = step(after, static_cast<uint8_t>(byte), context);
        context.text.pop_back();
        if (to == DEAD) continue;
        for (const int32_t node : trie.with_byte[byte]) {
            const int32_t chars = view.chars_at[trie.parent[node]];
            if (chars < 0 || !ends_here(chars)) continue;
            put(out, node);
            walk(node, to, context, out, -1);
        }
    }
}

// A counted string that something known follows: the few tokens that leave it, sorted once by the characters they need.
void Program::leave_counted(const CountedView& view, const Config& config, int after, Context& context, Sink out) {
    const Leaf& leaf = *leaves_[config.leaf];
    const int32_t sub = config.state % leaf.base->dfa.states;
    const int64_t count = config.state / leaf.base->dfa.states;
    auto [found, fresh] = leaving_.try_emplace({leaf.base.get(), sub, after});
    if (fresh) {
        for (size_t i = 0; i < view.exits.size(); i++) {
            std::vector<int32_t> ids;
            leave_at(view.exits[i], true, config.level, after, context, {nullptr, &ids});
            if (!ids.empty()) found->second.emplace_back(view.exit_chars[i], std::move(ids));
        }
    }
    const int64_t left = leaf.high < 0 ? INT32_MAX : leaf.high - count;
    for (const auto& [chars, ids] : found->second)
        if (count + chars >= leaf.low && chars <= left) set_all(out.mask, ids);
}

// The tokens below a node, from a state that stands at the node. With `room`, only those after which that many bytes
// are enough to come to an end. Without a mask: whether there is one.
bool Program::walk(int32_t node, int state, Context& context, Sink out, int64_t room) {
    const Trie& trie = vocab->trie;
    const int32_t base = trie.depth[node], end = trie.end[node];
    const size_t before = context.text.size();
    path_[base] = state;
    bool found = false;
    for (int32_t at = node + 1; at < end;) {
        const Trie::Step& here = trie.steps[at];
        context.text.resize(before + here.depth - base - 1);
        context.text.push_back(static_cast<char>(here.byte));
        const int to = step(path_[here.depth - 1], here.byte, context);
        if (to == DEAD) {
            at = here.end;
            continue;
        }
        path_[here.depth] = to;
        if (here.first_token != trie.steps[at + 1].first_token &&
            (room < 0 || states_[to]->distance <= static_cast<uint64_t>(room))) {
            found = true;
            if (!out.mask && !out.ids) break;
            put(out, at);
        }
        at++;
    }
    context.text.resize(before);
    return found;
}

// Whether some token that starts with `piece`, and is longer, is allowed: `state` stands after the piece.
bool Program::crosses(int state, const std::string& piece, Context& context) {
    int32_t node = 0;
    for (const char byte : piece) {
        node = vocab->trie.child(node, static_cast<uint8_t>(byte));
        if (node < 0) return false;
    }
    return walk(node, state, context, {nullptr}, -1);
}

}  // namespace sglite
