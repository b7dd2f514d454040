#include "leaf.hpp"

#include <algorithm>

namespace sglite {
namespace {

constexpr size_t FEW = 512;             // tokens listed rather than packed
constexpr size_t MANY_EXITS = 4096;
constexpr size_t MAX_VIEW_BYTES = 24u << 20;  // of one leaf
constexpr int COUNTED_FROM = 17;        // repetitions of one character counted, not written out as states
constexpr int MAX_COUNT = 1 << 24;      // more characters than any text has
constexpr size_t RECENT = 512;

void serialise(const Node& node, std::vector<int32_t>& out) {
    out.push_back(node.op);
    out.push_back(node.a);
    out.push_back(node.b);
    out.push_back(static_cast<int32_t>(node.data.size()));
    out.insert(out.end(), node.data.begin(), node.data.end());
    out.push_back(static_cast<int32_t>(node.kids.size()));
    for (const Node* kid : node.kids) serialise(*kid, out);
}

bool is_counted(const Node& node) {
    return node.op == REPEAT && node.kids[0]->op == CHARS && !node.kids[0]->data.empty() &&
           std::max(node.a, node.b) >= COUNTED_FROM;
}

std::unique_ptr<CountedView> view_counted(const CountedBase& base, int sub, const Vocabulary& vocab) {
    auto view = std::make_unique<CountedView>();
    const Trie& trie = vocab.trie;
    const Dfa& dfa = base.dfa;
    struct At {
        int32_t sub;
        int32_t chars;
    };
    std::vector<At> path(trie.max_depth + 1);
    path[0] = {sub, 0};
    for (int32_t node = 1; node < trie.size();) {
        const Trie::Step& here = trie.steps[node];
        const At from = path[here.depth - 1];
        int32_t to = dfa.next[static_cast<size_t>(from.sub) * dfa.classes + dfa.class_of[here.byte]];
        int32_t chars = from.chars;
        bool ends = false;
        if (to >= 0 && base.json && to == base.final) {
            to = DEAD;
            ends = true;
        } else if (to == base.done) {
            to = base.body;
            chars++;
            ends = !base.json;
        }
        // From the middle of a character nothing can end: `"` is no byte of one.
        if (ends) {
            view->exits.push_back(node);
            view->exit_chars.push_back(chars);
        }
        if (to == DEAD) {
            node = here.end;
            continue;
        }
        path[here.depth] = {to, chars};
        if (trie.has_tokens(node)) {
            const size_t need = chars + (to != base.body);
            if (view->by_need.size() <= need) view->by_need.resize(need + 1);
            for (int32_t t = trie.first_token[node]; t < trie.first_token[node + 1]; t++)
                view->by_need[need].push_back(trie.tokens[t]);
        }
        node++;
    }
    view->upto.resize(view->by_need.size());
    if (view->exits.size() > MANY_EXITS) {
        view->chars_at.assign(trie.size(), -1);
        for (size_t i = 0; i < view->exits.size(); i++) view->chars_at[view->exits[i]] = view->exit_chars[i];
    }
    return view;
}

}  // namespace

std::string utf8(const std::vector<int>& code_points) {
    std::string out;
    for (const int c : code_points) put_utf8(out, static_cast<uint32_t>(c));
    return out;
}

size_t LeafView::nbytes() const {
    return 4 * (ids.size() + bits.size() + missing.size()) + 8 * (exits.size() + exit_bits.size()) + 160;
}

int32_t Leaf::counted_next(int32_t state, uint8_t byte) const {
    const Dfa& table = base->dfa;
    const int32_t sub = state % table.states;
    int32_t count = state / table.states;
    const int32_t to = table.next[static_cast<size_t>(sub) * table.classes + table.class_of[byte]];
    if (to < 0) return DEAD;
    if (base->json) {
        if (to == base->final) return count >= low && sub == base->body ? to : DEAD;
        if (sub == table.start) return to;
    }
    if (sub == base->body && high >= 0 && count >= high) return DEAD;
    if (to != base->done) return count * table.states + to;
    count = high < 0 ? std::min(count + 1, low) : count + 1;
    return count * table.states + base->body;
}

int32_t Leaf::next(int32_t state, uint8_t byte) const {
    switch (kind) {
        case LITERAL:
            if (static_cast<size_t>(state) < literal.size() && static_cast<uint8_t>(literal[state]) == byte)
                return state + 1;
            return DEAD;
        case TABLE: return dfa.next[static_cast<size_t>(state) * dfa.classes + dfa.class_of[byte]];
        case COUNTED: return counted_next(state, byte);
        default: return DEAD;
    }
}

bool Leaf::accepting(int32_t state) const {
    switch (kind) {
        case LITERAL: return static_cast<size_t>(state) == literal.size();
        case TABLE: return dfa.accepting[state];
        case COUNTED:
            if (base->json) return state == base->final;
            return state % base->dfa.states == base->body && state / base->dfa.states >= low;
        default: return false;
    }
}

bool Leaf::closed(int32_t state) const {
    switch (kind) {
        case LITERAL: return static_cast<size_t>(state) == literal.size();
        case TABLE: return closed_[state];
        case COUNTED:
            if (base->json) return state == base->final;
            return high >= 0 && state % base->dfa.states == base->body && state / base->dfa.states >= high;
        default: return false;
    }
}

uint32_t Leaf::distance(int32_t state) const {
    switch (kind) {
        case LITERAL: return static_cast<uint32_t>(literal.size() - state);
        case TABLE: return dfa.distance[state];
        case COUNTED: {
            const int32_t sub = state % base->dfa.states;
            const int32_t count = state / base->dfa.states;
            const uint32_t quote = base->json ? 1 : 0;
            if (base->json && sub == base->final) return 0;
            if (base->json && sub == base->dfa.start) return 2 + low * base->shortest;
            if (sub == base->body) return std::max(0, low - count) * base->shortest + quote;
            const uint32_t rest = base->dfa.distance[sub] - quote;
            return rest + std::max(0, low - count - 1) * base->shortest + quote;
        }
        case SPECIAL_IDS: return SPECIAL_COST;
        default: return UINT32_MAX;
    }
}

int Leaf::single(int32_t state) const {
    if (kind == LITERAL)
        return static_cast<size_t>(state) < literal.size() ? static_cast<uint8_t>(literal[state]) : -1;
    if (kind == TABLE) return single_[state];
    if (kind == SPECIAL_IDS) return -2;
    int found = -1;
    for (int byte = 0; byte < 256; byte++) {
        if (counted_next(state, static_cast<uint8_t>(byte)) == DEAD) continue;
        if (found >= 0) return -2;
        found = byte;
    }
    return found;
}

uint8_t Leaf::toward(int32_t state) const {
    uint8_t best = 0;
    uint32_t least = UINT32_MAX;
    for (int byte = 0; byte < 256; byte++) {
        const int32_t to = next(state, static_cast<uint8_t>(byte));
        if (to == DEAD) continue;
        const uint32_t here = distance(to);
        // Of equally short ways a plain character rather than a control one: bytes are tried from '0' on.
        if (here < least || (here == least && best < '0' && byte >= '0')) {
            least = here;
            best = static_cast<uint8_t>(byte);
        }
    }
    return best;
}

void Leaf::finish() {
    if (kind == COUNTED) start = base->json ? base->dfa.start : base->body;
    if (kind != TABLE) return;
    start = dfa.start;
    closed_.assign(dfa.states, 0);
    single_.assign(dfa.states, -1);
    for (int state = 0; state < dfa.states; state++) {
        std::vector<uint8_t> seen(dfa.classes, 0);
        for (int byte = 0; byte < 256; byte++) {
            if (dfa.next[static_cast<size_t>(state) * dfa.classes + dfa.class_of[byte]] < 0) continue;
            single_[state] = static_cast<int16_t>(single_[state] == -1 ? byte : -2);
            if (single_[state] == -2) break;
        }
        closed_[state] = single_[state] == -1;
    }
}

size_t Leaf::nbytes() const {
    return sizeof(Leaf) + literal.size() + 4 * special.size() + 4 * dfa.next.size() + 9u * dfa.accepting.size();
}

std::shared_ptr<const LeafView> Leaf::view(int32_t state, const Vocabulary& vocab) const {
    std::lock_guard<std::mutex> guard(lock_);
    const auto known = views_.find(state);
    if (known != views_.end()) return known->second;
    auto view = std::make_shared<LeafView>();
    if (plain) look_beside_plain(state, vocab, *view);
    else look(state, vocab, *view);
    if (view->exits.size() > MANY_EXITS) {
        view->exit_bits.assign((vocab.trie.size() + 63) / 64, 0);
        for (const auto& exit : view->exits) view->exit_bits[exit.node >> 6] |= uint64_t{1} << (exit.node & 63);
    }
    if (view_bytes_ > MAX_VIEW_BYTES) {
        views_.clear();
        view_bytes_ = 0;
    }
    view_bytes_ += view->nbytes();
    views_[state] = view;
    return view;
}

void Leaf::look(int32_t state, const Vocabulary& vocab, LeafView& view) const {
    const Trie& trie = vocab.trie;
    std::vector<int32_t> path(trie.max_depth + 1);
    path[0] = state;
    const int32_t* table = dfa.next.data();
    const uint8_t* class_of = dfa.class_of;
    const int classes = dfa.classes;
    const int32_t* tokens = trie.tokens.data();
    const Trie::Step* steps = trie.steps.data();
    std::vector<uint32_t> bits(vocab.words);
    size_t count = 0;
    for (int32_t node = 1, size = trie.size(); node < size;) {
        const Trie::Step& here = steps[node];
        const int32_t to = table[static_cast<size_t>(path[here.depth - 1]) * classes + class_of[here.byte]];
        if (to < 0) {
            node = here.end;
            continue;
        }
        const bool closes = closed_[to];
        if (dfa.accepting[to]) view.exits.push_back({node, closes});
        if (closes) {
            node = here.end;
            continue;
        }
        path[here.depth] = to;
        for (int32_t t = here.first_token; t < steps[node + 1].first_token; t++, count++)
            bits[tokens[t] >> 5] |= 1u << (tokens[t] & 31);
        node++;
    }
    if (count > FEW) {
        view.bits = std::move(bits);
    } else if (count) {
        for (int32_t i = 0; i < vocab.words; i++)
            for (uint32_t word = bits[i]; word; word &= word - 1) view.ids.push_back(32 * i + __builtin_ctz(word));
    }
}

// Both automata side by side, only as far as they differ.
void Leaf::look_beside_plain(int32_t state, const Vocabulary& vocab, LeafView& view) const {
    const Trie& trie = vocab.trie;
    view.plain = plain->view(plain_body, vocab);
    view.bits = view.plain->bits;
    view.bits.resize(vocab.words);
    for (const int32_t id : view.plain->ids) view.bits[id >> 5] |= 1u << (id & 31);
    struct Pair {
        int32_t own;
        int32_t other;
    };
    std::vector<Pair> path(trie.max_depth + 1);
    path[0] = {state, plain_body};
    if (same_[state] == plain_body) return;
    for (int32_t node = 1; node < trie.size();) {
        const Trie::Step& here = trie.steps[node];
        const Pair from = path[here.depth - 1];
        const int32_t own = from.own == DEAD ? DEAD : next(from.own, here.byte);
        const int32_t other = from.other == DEAD ? DEAD : plain->next(from.other, here.byte);
        if (own == DEAD ? other == DEAD : other != DEAD && same_[own] == other) {
            node = here.end;
            continue;
        }
        const bool own_inside = own != DEAD && !closed_[own], other_inside = other != DEAD && !plain->closed_[other];
        if (own_inside != other_inside)
            for (int32_t t = here.first_token; t < trie.steps[node + 1].first_token; t++)
                view.bits[trie.tokens[t] >> 5] ^= 1u << (trie.tokens[t] & 31);
        const bool own_exit = own != DEAD && dfa.accepting[own];
        if (own_exit) view.exits.push_back({node, static_cast<bool>(closed_[own])});
        if (other != DEAD && plain->dfa.accepting[other]) view.missing.push_back(node);
        path[here.depth] = {own, other};
        node++;
    }
}

void Leaf::compare_with(std::shared_ptr<const Leaf> all) {
    std::vector<int32_t> same(dfa.states, DEAD);
    for (int32_t state = 0; state < dfa.states; state++) {
        // Every character of a body leads back to it.
        if (next(state, 'a') != state || next(state, '~') != state) continue;
        std::fill(same.begin(), same.end(), DEAD);
        same[state] = all->next(all->next(all->start, '"'), 'a');
        plain = all;
        if (same_from(state, same)) {
            plain_body = same[state];
            same_ = std::move(same);
            return;
        }
    }
    plain = nullptr;
}

// Whether a state's future is that of the state of `plain` it is paired with; pairs whatever is met on the way.
bool Leaf::same_from(int32_t state, std::vector<int32_t>& same) const {
    std::vector<int32_t> waiting{state};
    while (!waiting.empty()) {
        const int32_t own = waiting.back(), other = same[own];
        waiting.pop_back();
        if (accepting(own) != plain->accepting(other)) return false;
        for (int byte = 0; byte < 256; byte++) {
            const int32_t to = next(own, static_cast<uint8_t>(byte)), beside = plain->next(other, static_cast<uint8_t>(byte));
            if ((to == DEAD) != (beside == DEAD)) return false;
            if (to == DEAD) continue;
            if (same[to] == DEAD) {
                same[to] = beside;
                waiting.push_back(to);
            } else if (same[to] != beside) {
                return false;
            }
        }
    }
    return true;
}

CountedView& counted_view(CountedBase& base, int sub, const Vocabulary& vocab) {
    std::lock_guard<std::mutex> guard(base.lock);
    auto& slot = base.views[sub];
    if (!slot) slot = view_counted(base, sub, vocab);
    return *slot;
}

std::shared_ptr<const Leaf> LeafStore::literal(const std::string& text) {
    auto made = std::make_shared<Leaf>();
    made->literal = text;
    made->finish();
    return made;
}

std::shared_ptr<const Leaf> LeafStore::leaf(const Node& node, bool json) {
    std::vector<int32_t> key{json};
    serialise(node, key);
    {
        std::lock_guard<std::mutex> guard(lock_);
        if (auto found = leaves_[key].lock()) return found;
    }
    auto made = make(node, json);
    std::lock_guard<std::mutex> guard(lock_);
    auto& slot = leaves_[key];
    if (auto found = slot.lock()) return found;
    slot = made;
    if (recent_.size() < RECENT) {
        recent_.push_back(made);
    } else {
        recent_[oldest_] = made;
        oldest_ = (oldest_ + 1) % RECENT;
    }
    if (leaves_.size() > 8 * RECENT)
        for (auto it = leaves_.begin(); it != leaves_.end();) it = it->second.expired() ? leaves_.erase(it) : ++it;
    return made;
}

std::shared_ptr<const Leaf> LeafStore::make(const Node& node, bool json) {
    auto made = std::make_shared<Leaf>();
    if (node.op == TEXT && !json) {
        made->literal = utf8(node.data);
    } else if (is_counted(node)) {
        made->kind = Leaf::COUNTED;
        made->base = base(*node.kids[0], json);
        made->low = node.a;
        made->high = node.b;
        if (made->high > MAX_COUNT) made->high = -1;
        if (made->low > MAX_COUNT) throw Refusal{"a repetition of more than 16777216 characters cannot be executed"};
        const int64_t most = int64_t{std::max(made->low, made->high) + 1} * made->base->dfa.states;
        if (most > INT32_MAX) throw Refusal{"a counted repetition has too many states; lower the count"};
    } else {
        made->kind = Leaf::TABLE;
        try {
            made->dfa = build_dfa(node, json, max_states_, max_work_);
        } catch (const Refusal& refusal) {
            if (!refusal.empty) throw;
            made->kind = Leaf::NOTHING;
        }
    }
    made->finish();
    if (json && made->kind == Leaf::TABLE) made->compare_with(all_strings());
    return made;
}

// Every JSON string but one, so that characters are spelled as where they are not all alike; behind its first letter
// every one.
std::shared_ptr<const Leaf> LeafStore::all_strings() {
    std::lock_guard<std::mutex> guard(lock_);
    if (all_strings_) return all_strings_;
    Node one, whole;
    one.op = TEXT;
    one.data = {1};
    whole.op = NOT;
    whole.kids = {&one};
    auto made = std::make_shared<Leaf>();
    made->kind = Leaf::TABLE;
    made->dfa = build_dfa(whole, true, max_states_, max_work_);
    made->finish();
    all_strings_ = made;
    return all_strings_;
}

std::shared_ptr<CountedBase> LeafStore::base(const Node& chars, bool json) {
    std::vector<int32_t> key{json};
    serialise(chars, key);
    {
        std::lock_guard<std::mutex> guard(lock_);
        if (auto found = bases_[key].lock()) return found;
    }
    auto made = std::make_shared<CountedBase>();
    made->json = json;
    made->dfa = build_dfa(chars, json, max_states_, max_work_);
    const Dfa& dfa = made->dfa;
    const auto step = [&](int state, int byte) { return dfa.next[state * dfa.classes + dfa.class_of[byte]]; };
    if (json) {
        made->body = step(dfa.start, '"');
        for (int state = 0; state < dfa.states; state++) {
            if (dfa.accepting[state]) made->final = state;
            if (state != dfa.start && step(state, '"') >= 0 && dfa.accepting[step(state, '"')]) made->done = state;
        }
        made->shortest = dfa.distance[made->body] - 1;
        // The closing quote may follow at once where a character may begin.
        made->dfa.next[made->body * dfa.classes + dfa.class_of['"']] = made->final;
    } else {
        made->body = dfa.start;
        for (int state = 0; state < dfa.states; state++)
            if (dfa.accepting[state]) made->done = state;
        made->shortest = dfa.distance[dfa.start];
    }
    std::lock_guard<std::mutex> guard(lock_);
    auto& slot = bases_[key];
    if (auto found = slot.lock()) return found;
    slot = made;
    return made;
}

}  // namespace sglite
