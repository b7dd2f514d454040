// From the grammar to instructions: each maximal regular piece a leaf, the rest a graph with calls and frames.
#include <algorithm>

#include "machine.hpp"

namespace sglite {
namespace {

constexpr size_t MAX_INSTS = 4u << 20;
constexpr int MAX_SHUFFLED = 4096;

uint64_t sum(uint64_t left, uint64_t right) { return std::min(FAR, left + right); }

uint64_t times(uint64_t count, uint64_t cost) { return count == 0 || cost == 0 ? 0 : cost > FAR / count ? FAR : count * cost; }

// A constant JSON string: its characters, with the ways to spell each that is not spelled as itself alone.
Node* spelled(const Node& text, Grammar& owner) {
    static const std::string shorts = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
    const auto make = [&](int op) {
        owner.nodes.push_back(std::make_unique<Node>());
        owner.nodes.back()->op = op;
        return owner.nodes.back().get();
    };
    Node* whole = make(SEQ);
    Node* run = make(TEXT);
    run->data.push_back('"');
    const auto ascii = [](Node* node, const std::string& s) { node->data.insert(node->data.end(), s.begin(), s.end()); };
    for (const int c : text.data) {
        const size_t at = c < 128 ? shorts.find(static_cast<char>(c)) : std::string::npos;
        if (c >= 0x20 && at == std::string::npos) {
            run->data.push_back(c);
            continue;
        }
        if (c >= 0x20) {
            ascii(run, std::string{'\\', letters[at]});
            continue;
        }
        whole->kids.push_back(run);
        Node* ways = make(ALT);
        if (at != std::string::npos) {
            Node* way = make(TEXT);
            ascii(way, std::string{'\\', letters[at]});
            ways->kids.push_back(way);
        }
        for (const char* digits : {"0123456789abcdef", "0123456789ABCDEF"}) {
            Node* way = make(TEXT);
            ascii(way, std::string("\\u00") + digits[c >> 4] + digits[c & 15]);
            if (ways->kids.empty() || ways->kids.back()->data != way->data) ways->kids.push_back(way);
        }
        whole->kids.push_back(ways);
        run = make(TEXT);
    }
    run->data.push_back('"');
    if (whole->kids.empty()) return run;
    whole->kids.push_back(run);
    return whole;
}

void spell_constants(Grammar& grammar, Node*& node) {
    for (Node*& kid : node->kids) spell_constants(grammar, kid);
    if (node->op == JSON && node->kids[0]->op == TEXT) node = spelled(*node->kids[0], grammar);
}

}  // namespace

Program::Program(std::shared_ptr<Vocabulary> words, std::shared_ptr<LeafStore> store, Grammar grammar, Limits limits)
    : vocab(std::move(words)), limits_(limits), store_(std::move(store)) {
    for (Node*& rule : grammar.rules) spell_constants(grammar, rule);
    nullable_.assign(grammar.rules.size(), false);
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = 0; i < grammar.rules.size(); i++)
            if (!nullable_[i] && nullable(*grammar.rules[i])) changed = nullable_[i] = true;
    }
    refuse_left_recursion(grammar);
    root_ = grammar.root;
    add(Inst{});  // 0: the return
    for (size_t i = 0; i < grammar.rules.size(); i++) rule_entry_.push_back(0);
    for (size_t i = 0; i < grammar.rules.size(); i++) rule_entry_[i] = compile(*grammar.rules[i], 0);
    find_costs();
    if (cost_[rule_entry_[root_]] >= FAR)
        throw Refusal{"matches nothing: no text can satisfy it; relax what contradicts itself", true};
    clear_runtime();
}

bool Program::nullable(const Node& node) const {
    switch (node.op) {
        case TEXT: return node.data.empty();
        case SEQ:
        case AND: return std::all_of(node.kids.begin(), node.kids.end(), [&](const Node* k) { return nullable(*k); });
        case ALT: return std::any_of(node.kids.begin(), node.kids.end(), [&](const Node* k) { return nullable(*k); });
        case REPEAT: return node.a == 0 || nullable(*node.kids[0]);
        case NOT: return !nullable(*node.kids[0]);
        case REF: return nullable_[node.a];
        case SHUFFLE: return node.a == 0 && node.data.size() == 1;
        case SCOPE:
        case UNIQUE:
        case GUARD: return nullable(*node.kids[0]);
        default: return false;
    }
}

void Program::refuse_left_recursion(const Grammar& grammar) {
    // What each rule may call before it has consumed anything.
    std::vector<std::vector<int>> calls(grammar.rules.size());
    struct Finder {
        const Program& program;
        std::vector<int>& found;
        void visit(const Node& node) {
            if (node.op == REF) found.push_back(node.a);
            for (const Node* kid : node.kids) {
                visit(*kid);
                if (node.op == SEQ && !program.nullable(*kid)) break;
            }
        }
    };
    for (size_t i = 0; i < grammar.rules.size(); i++) Finder{*this, calls[i]}.visit(*grammar.rules[i]);
    std::vector<char> mark(grammar.rules.size(), 0);  // 1: on the path, 2: done
    for (size_t first = 0; first < grammar.rules.size(); first++) {
        if (mark[first]) continue;
        std::vector<std::pair<int, size_t>> path{{static_cast<int>(first), 0}};
        mark[first] = 1;
        while (!path.empty()) {
            auto& [rule, at] = path.back();
            if (at == calls[rule].size()) {
                mark[rule] = 2;
                path.pop_back();
                continue;
            }
            const int called = calls[rule][at++];
            if (mark[called] == 1)
                throw Refusal{"a rule calls itself before it has matched anything (left recursion); rewrite it as a repetition"};
            if (!mark[called]) {
                mark[called] = 1;
                path.emplace_back(called, 0);
            }
        }
    }
}

int Program::add(Inst inst) {
    if (insts_.size() >= MAX_INSTS) throw Refusal{"the grammar is too large to be executed; simplify it"};
    insts_.push_back(std::move(inst));
    return static_cast<int>(insts_.size()) - 1;
}

int Program::leaf_inst(std::shared_ptr<const Leaf> leaf, int next) {
    Inst inst;
    inst.op = I_LEAF;
    inst.next = next;
    inst.a = static_cast<int>(leaves_.size());
    leaves_.push_back(std::move(leaf));
    return add(std::move(inst));
}

int Program::compile(const Node& node, int next) {
    if (node.op == TEXT) return node.data.empty() ? next : leaf_inst(store_->literal(utf8(node.data)), next);
    if (node.op == JSON) return leaf_inst(store_->leaf(*node.kids[0], true), next);
    if (node.op == SPECIAL) {
        auto leaf = std::make_shared<Leaf>();
        leaf->kind = Leaf::SPECIAL_IDS;
        leaf->special.assign(node.data.begin(), node.data.end());
        return leaf_inst(leaf, next);
    }
    if (is_regular(node)) return leaf_inst(store_->leaf(node, false), next);
    Inst inst;
    inst.next = next;
    switch (node.op) {
        case SEQ: return compile_seq(node, next);
        case ALT: return compile_alt(node, next);
        case REF: inst.op = I_CALL; inst.body = node.a; return add(std::move(inst));
        case SHUFFLE: return compile_shuffle(node, next);
        case REPEAT: {
            if (node.a == 0 && node.b == 1) {
                inst.op = I_ALT;
                inst.targets = {compile(*node.kids[0], next), next};
                return add(std::move(inst));
            }
            inst.op = I_REPEAT;
            inst.body = compile(*node.kids[0], 0);
            inst.a = node.a;
            inst.b = node.b;
            inst.nullable_body = nullable(*node.kids[0]);
            return add(std::move(inst));
        }
        case SCOPE: inst.op = I_SCOPE; break;
        case UNIQUE: inst.op = I_UNIQUE; inst.a = node.a; break;
        case GUARD: inst.op = I_GUARD; inst.a = node.a; break;
        default: throw Refusal{"internal: And, Not or JsonString holds something that is not regular"};
    }
    positional_ = true;
    inst.body = compile(*node.kids[0], 0);
    return add(std::move(inst));
}

// Neighbours that are regular become one leaf.
int Program::compile_seq(const Node& node, int next) {
    for (size_t end = node.kids.size(); end > 0;) {
        size_t begin = end - 1;
        if (is_regular(*node.kids[begin]))
            while (begin > 0 && is_regular(*node.kids[begin - 1])) begin--;
        if (end - begin == 1) {
            next = compile(*node.kids[begin], next);
        } else {
            Node run;
            run.op = SEQ;
            run.kids.assign(node.kids.begin() + begin, node.kids.begin() + end);
            next = leaf_inst(store_->leaf(run, false), next);
        }
        end = begin;
    }
    return next;
}

int Program::compile_alt(const Node& node, int next) {
    Node regular;
    regular.op = ALT;
    Inst inst;
    inst.op = I_ALT;
    for (const Node* kid : node.kids) {
        if (kid->op != TEXT && !is_regular(*kid)) inst.targets.push_back(compile(*kid, next));
        else if (is_regular(*kid)) regular.kids.push_back(const_cast<Node*>(kid));
    }
    if (regular.kids.size() == 1) inst.targets.push_back(compile(*regular.kids[0], next));
    if (regular.kids.size() > 1) inst.targets.push_back(leaf_inst(store_->leaf(regular, false), next));
    if (inst.targets.size() == 1) return inst.targets[0];
    return add(std::move(inst));
}

int Program::compile_shuffle(const Node& node, int next) {
    const bool rest = !node.data.empty() && node.data[0] == 1;
    Inst inst;
    inst.op = I_SHUFFLE;
    inst.next = next;
    inst.a = node.a;
    inst.b = node.b;
    inst.items = static_cast<int>(node.kids.size()) - 1 - rest;
    if (inst.items < 0 || inst.items > MAX_SHUFFLED) throw Refusal{"more than 4096 entries in any order cannot be executed"};
    inst.required.assign(inst.items, false);
    for (size_t i = 1; i < node.data.size(); i++) inst.required.at(node.data[i]) = true;
    const Node& separator = *node.kids[inst.items];
    std::vector<const Node*> bodies(node.kids.begin(), node.kids.begin() + inst.items);
    if (rest) bodies.push_back(node.kids.back());
    for (const Node* body : bodies) inst.targets.push_back(compile(*body, 0));
    for (size_t i = 0; i < bodies.size(); i++) inst.targets.push_back(compile(separator, inst.targets[i]));
    return add(std::move(inst));
}

// Fewest bytes from each instruction to the return, by relaxation: a cost only falls, and only along a cheaper way.
void Program::find_costs() {
    cost_.assign(insts_.size(), FAR);
    cost_[0] = 0;
    std::vector<std::vector<int>> users(insts_.size());
    for (size_t i = 1; i < insts_.size(); i++) {
        const Inst& inst = insts_[i];
        users[inst.next].push_back(static_cast<int>(i));
        if (inst.op == I_CALL) users[rule_entry_[inst.body]].push_back(static_cast<int>(i));
        else if (inst.op != I_LEAF) users[inst.body].push_back(static_cast<int>(i));
        for (const int target : inst.targets) users[target].push_back(static_cast<int>(i));
    }
    std::vector<int> waiting;
    for (int i = static_cast<int>(insts_.size()) - 1; i > 0; i--) waiting.push_back(i);
    std::reverse(waiting.begin(), waiting.end());
    std::vector<char> queued(insts_.size(), 1);
    for (size_t at = 0; at < waiting.size(); at++) {
        const int i = waiting[at];
        queued[i] = 0;
        const uint64_t cost = cost_of(insts_[i]);
        if (cost >= cost_[i]) continue;
        cost_[i] = cost;
        for (const int user : users[i])
            if (!queued[user]) {
                queued[user] = 1;
                waiting.push_back(user);
            }
        if (at > (1u << 20)) {
            waiting.erase(waiting.begin(), waiting.begin() + at + 1);
            at = static_cast<size_t>(-1);
        }
    }
}

uint64_t Program::cost_of(const Inst& inst) const {
    switch (inst.op) {
        case I_RETURN: return 0;
        case I_LEAF:
            if (leaves_[inst.a]->kind == Leaf::NOTHING) return FAR;
            return sum(leaves_[inst.a]->distance(leaves_[inst.a]->start), cost_[inst.next]);
        case I_CALL: return sum(cost_[rule_entry_[inst.body]], cost_[inst.next]);
        case I_ALT: {
            uint64_t least = FAR;
            for (const int target : inst.targets) least = std::min(least, cost_[target]);
            return least;
        }
        case I_REPEAT: return sum(times(inst.a, cost_[inst.body]), cost_[inst.next]);
        case I_SHUFFLE: return sum(frame_cost(Frame{static_cast<int>(&inst - insts_.data()), true, 0, 0, 0}), 0);
        default: return sum(cost_[inst.body], cost_[inst.next]);
    }
}

// Fewest bytes from the moment a frame is returned to until its own level is returned to.
uint64_t Program::frame_cost(const Frame& frame) const {
    if (!frame.inside) return cost_[frame.pc];
    const Inst& inst = insts_[frame.pc];
    if (inst.op == I_REPEAT) {
        const uint64_t left = static_cast<uint64_t>(inst.a) > frame.data + 1 ? inst.a - frame.data - 1 : 0;
        return sum(times(left, cost_[inst.body]), cost_[inst.next]);
    }
    if (inst.op != I_SHUFFLE) return cost_[inst.next];
    std::vector<bool> used = frame.data ? sets_[frame.data].has : std::vector<bool>(inst.items);
    uint64_t count = (frame.data ? sets_[frame.data].count : 0) + frame.extra, cost = 0;
    const size_t bodies = inst.targets.size() / 2;
    const auto body = [&](size_t i) { return cost_[inst.targets[count ? bodies + i : i]]; };
    for (int i = 0; i < inst.items; i++)
        if (inst.required[i] && !used[i]) {
            cost = sum(cost, body(i));
            used[i] = true;
            count++;
        }
    while (count < static_cast<uint64_t>(inst.a)) {
        uint64_t least = FAR;
        int best = -1;
        for (size_t i = 0; i < bodies; i++)
            if ((static_cast<int>(i) >= inst.items || !used[i]) && body(i) < least) {
                least = body(i);
                best = static_cast<int>(i);
            }
        if (best < 0) return FAR;
        if (best >= inst.items) return sum(sum(cost, times(inst.a - count, least)), cost_[inst.next]);
        cost = sum(cost, least);
        used[best] = true;
        count++;
    }
    return sum(cost, cost_[inst.next]);
}

size_t Program::nbytes() const {
    size_t total = insts_.size() * (sizeof(Inst) + 16) + mask_bytes_ + transition_bytes_;
    for (const auto& leaf : leaves_) total += leaf->nbytes();
    return total + states_.size() * sizeof(State) + levels_.size() * sizeof(Level);
}

}  // namespace sglite
