// A grammar as a pushdown automaton that is made deterministic while it runs.
//
// A configuration is a leaf with its state, and the level of the stack to go on at when the leaf ends. A level is a set
// of frames, each with its own level below it; levels, and the sets of configurations that are the automaton's states,
// are interned, so that equal futures are one state and every transition is worked out once. Frames with the same place
// and data within one level share what lies below, which keeps ambiguous grammars polynomial.
//
// What looks at the text (SCOPE, UNIQUE, GUARD) keeps the position where it began in its frame. A transition during
// which such a frame was made, or a value was checked, depends on the text and is not remembered.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "json.hpp"
#include "leaf.hpp"

namespace sglite {

constexpr uint64_t FAR = uint64_t{1} << 50;  // bytes to a place that no text reaches

struct Limits {
    size_t max_states = 0;          // states and levels of the automaton before it starts afresh
    size_t max_configs = 200000;    // of one state
    size_t mask_bytes = 8u << 20;   // of remembered masks
};

enum InstOp : uint8_t { I_LEAF, I_CALL, I_ALT, I_REPEAT, I_SHUFFLE, I_SCOPE, I_UNIQUE, I_GUARD, I_RETURN };

struct Inst {
    InstOp op = I_RETURN;
    int next = 0;   // after this; 0 is the one I_RETURN
    int body = 0;   // I_CALL: rule; others: where the body begins
    int a = 0;      // I_LEAF: leaf; I_REPEAT and I_SHUFFLE: low; I_GUARD: check; I_UNIQUE: safe
    int b = 0;      // high
    bool nullable_body = false;
    std::vector<int> targets;    // I_ALT; I_SHUFFLE: item bodies, first without and then with the separator, then rest
    std::vector<bool> required;  // I_SHUFFLE, by item
    int items = 0;
};

struct Frame {
    int pc;          // where to go on
    bool inside;     // or the instruction whose body ends here, with its data
    uint64_t data;   // I_REPEAT: rounds; I_SHUFFLE: items used, as a number of `sets_`; others: position in the text
    uint32_t extra;  // I_SHUFFLE: entries that are no item
    int below;

    bool same_place(const Frame& other) const {
        return pc == other.pc && inside == other.inside && data == other.data && extra == other.extra;
    }
};

struct Config {
    int leaf;
    int32_t state;
    int level;
};

struct Level {
    std::vector<Frame> frames;
    bool bottom = false;       // or the stack is empty: the text may end here
    bool checking = false;     // a value that is checked when it ends has begun, here or below
    int64_t scope = -1;        // where the outermost container began whose entries are compared
    int64_t held_from = -1;    // the earliest position of a value that may be taken back
    uint64_t distance = 0;
    int assumed = -1;          // the same if whatever is checked holds; -3: the text has a say nevertheless
    int advanced = -1;         // the state after this level is returned to, when the text has no say; -2: none
};

struct Mask {
    std::vector<int32_t> ids;
    std::vector<uint32_t> bits;
};

struct Forced {
    size_t limit;                     // it was asked with
    std::string text;
    std::vector<int32_t> crossings;   // where a token may start that runs past its end
};

struct State {
    std::vector<Config> configs;
    bool accept = false;
    bool checking = false;
    bool looked = false;      // its mask or its forced text depended on the text
    int8_t accepting = -1;    // unknown, no, yes
    int16_t forced = -3;      // unknown; -2 several, -1 none
    int64_t held_from = -1;
    uint64_t distance = 0;
    std::vector<std::pair<uint8_t, int>> few;
    std::unique_ptr<int32_t[]> many;   // -2 unknown
    std::unique_ptr<Mask> mask;
    std::unique_ptr<Forced> run;
};

// What the text says. `text` ends where the state stands.
struct Context {
    std::string text;
    bool looked = false;      // a position was kept or a value checked since this was last cleared
    bool unknown = false;     // an answer is missing
    bool asking = true;       // or else what is not known does not hold
    int tries = 0;            // left for searches of a completion; tokens earn more
    std::unordered_map<std::string, bool> answers;
    std::vector<std::pair<int, std::string>> pending;
    size_t committed = 0;     // of the text; what comes after it belongs to a walk
    // Entries of the container around a value, by where the outermost one and the value began; within `committed`.
    std::map<std::pair<size_t, size_t>, std::unordered_set<std::string>> seen;
    Containers containers;
    size_t containers_from = SIZE_MAX;

    void forget() {
        seen.clear();
        containers_from = SIZE_MAX;
    }
};

class Program {
public:
    Program(std::shared_ptr<Vocabulary> vocab, std::shared_ptr<LeafStore> store, Grammar grammar, Limits limits);

    std::shared_ptr<Vocabulary> vocab;
    std::mutex lock;   // held by whoever runs it
    int epoch = 0;

    int start(Context& context);
    // The text already ends with `byte`.
    int step(int state, uint8_t byte, Context& context);
    int take_special(int state, int32_t id, Context& context);
    bool accepting(int state, Context& context);
    // What must follow, at most `limit` bytes of it.
    Forced forced_text(int state, size_t limit, Context& context);
    void fill(int state, Context& context, uint32_t* mask, int64_t room);
    // A shortest text that completes the one of the state; false when none is found.
    bool complete(int state, Context& context, std::string& text);
    const State& at(int state) const { return *states_[state]; }
    // Equal for equal futures, -1 when the text has a say.
    int64_t state_key(int state) const;
    bool start_afresh_if_large();
    size_t nbytes() const;
    uint64_t shortest() const { return cost_[rule_entry_[root_]]; }

private:
    struct Builder;

    // compiling
    int add(Inst inst);
    int compile(const Node& node, int next);
    int compile_seq(const Node& node, int next);
    int compile_alt(const Node& node, int next);
    int compile_shuffle(const Node& node, int next);
    int leaf_inst(std::shared_ptr<const Leaf> leaf, int next);
    void refuse_left_recursion(const Grammar& grammar);
    void find_costs();
    uint64_t cost_of(const Inst& inst) const;
    uint64_t frame_cost(const Frame& frame) const;

    // running
    int intern_level(std::vector<Frame> frames, bool bottom);
    int push(Frame frame);
    int after(int pc, int below);
    int merge(int left, int right);
    int intern_state(Builder& builder);
    void resume(int level, size_t position, Context& context, Builder& out);
    void enter(int pc, int level, Builder& out);
    void close(size_t position, Context& context, Builder& out);
    void enter_leaf(const Inst& inst, int level, Builder& out);
    void enter_repeat(int pc, uint64_t count, int level, Builder& out);
    void enter_shuffle(int pc, uint64_t used, uint32_t rest, int level, Builder& out);
    uint64_t with_item(uint64_t used, int item, int items);
    bool holds(const Frame& frame, size_t position, Context& context);
    bool is_unique(const Frame& frame, size_t position, Context& context);
    const std::unordered_set<std::string>& earlier(const Frame& frame, Context& context);
    int assume(int level, Context& context);
    int advance(int level, size_t position, Context& context);
    void step_into(int state, uint8_t byte, Context& context, Builder& out, int depth);
    int forced(int state, Context& context);
    int find_forced(int state, Context& context, int depth);
    bool crosses(int state, const std::string& piece, Context& context);
    int toward(int state, Context& context);
    bool search(int state, Context& context, std::string& text);

    // masks: tokens go into a row, or into a list
    struct Sink {
        uint32_t* mask;
        std::vector<int32_t>* ids = nullptr;
    };
    using Leaving = std::vector<std::pair<int, std::vector<int32_t>>>;
    void fill_state(int state, Context& context, Sink out, int depth);
    void fill_special(int state, Context& context, uint32_t* mask, int64_t room, int depth);
    void fill_literal(const Config& config, Context& context, Sink out);
    void fill_table(const Config& config, Context& context, Sink out);
    void fill_counted(const Config& config, Context& context, Sink out);
    void leave_view(const LeafView& view, const Config& config, int after, Context& context, Sink out);
    bool leave_plain(const LeafView& view, const Config& config, int after, Context& context, Sink out);
    bool repeated(const Config& config, Context& context, std::vector<int32_t>& nodes);
    void leave_counted(const CountedView& view, const Config& config, int after, Context& context, Sink out);
    void leave_at(int32_t node, bool closes, int level, int after, Context& context, Sink out);
    int after_if_pure(int level, Context& context);
    bool walk(int32_t node, int state, Context& context, Sink out, int64_t room);
    void put(Sink out, int32_t node);
    void clear_runtime();
    bool nullable(const Node& node) const;

    Limits limits_;
    int root_ = 0;
    std::vector<Inst> insts_;
    std::vector<int> rule_entry_;
    std::vector<bool> nullable_;          // by rule
    std::vector<uint64_t> cost_;          // by instruction: fewest bytes to the return
    std::vector<std::shared_ptr<const Leaf>> leaves_;
    std::shared_ptr<LeafStore> store_;
    bool positional_ = false;             // has SCOPE, UNIQUE or GUARD

    std::vector<std::unique_ptr<Level>> levels_;
    std::vector<std::unique_ptr<State>> states_;
    std::unordered_map<uint64_t, std::vector<int>> level_index_;
    std::unordered_map<uint64_t, std::vector<int>> state_index_;
    std::unordered_map<uint64_t, int> merged_;
    // Sets of items that were used, by number; 0 is the empty one.
    struct ItemSet {
        std::vector<bool> has;
        int count = 0;
    };
    std::vector<ItemSet> sets_;
    std::map<std::vector<bool>, int> set_index_;
    std::vector<int> path_;               // states along a walk
    // Tokens that leave a string, when something known follows: by what they leave, its state, and what follows. The
    // lists go with the characters before the end of a counted string, or with the node where another ends.
    std::map<std::tuple<const void*, int, int>, Leaving> leaving_;
    size_t mask_bytes_ = 0;
    size_t transition_bytes_ = 0;
};

}  // namespace sglite
