// Leaves: the regular pieces of a grammar, over bytes, with what the vocabulary looks like from each of their states.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "automaton.hpp"
#include "ir.hpp"
#include "trie.hpp"

namespace sglite {

// A special token counts as so many bytes: completions are written as text, so ways without one are nearer.
constexpr uint32_t SPECIAL_COST = 1 << 20;

constexpr int32_t DEAD = -1;

// The tokens that stay inside a leaf from one of its states, and the nodes of the trie where they may leave it.
struct LeafView {
    struct Exit {
        int32_t node;   // after whose byte the leaf may end
        bool closes;    // it cannot go on there
        bool operator<(const Exit& other) const { return node < other.node; }
    };
    std::vector<int32_t> ids;        // tokens that end inside, when few
    std::vector<uint32_t> bits;      // the same packed, when many; then `ids` is empty
    std::vector<Exit> exits;         // ascending; with `plain` only those that it has not
    std::vector<uint64_t> exit_bits; // `exits` as a set of nodes, when they are many
    std::shared_ptr<const LeafView> plain;  // the view that this one differs from by `exits` and `missing`
    std::vector<int32_t> missing;    // nodes, ascending
    size_t nbytes() const;
};

// A view of a counted leaf, for every count at once.
struct CountedView {
    std::vector<std::vector<int32_t>> by_need;  // tokens by the characters they begin
    std::vector<std::vector<uint32_t>> upto;    // packed union of by_need[0..n], made when asked for
    std::vector<int32_t> exits;
    std::vector<int32_t> exit_chars;            // beside `exits`: whole characters before it
    std::vector<int32_t> chars_at;              // by node, -1 where nothing ends; when exits are many
};

// One character again and again: shared by all leaves that differ in their counts alone.
struct CountedBase {
    Dfa dfa;
    bool json = false;
    int body = 0;     // state in which a character begins
    int done = 0;     // state in which it is complete
    int final = -1;   // json: after the closing quote
    uint32_t shortest = 1;  // bytes of the shortest character
    std::mutex lock;
    std::map<int, std::unique_ptr<CountedView>> views;  // by state of `dfa`
};

class Leaf {
public:
    enum Kind { LITERAL, TABLE, COUNTED, SPECIAL_IDS, NOTHING };

    Kind kind = LITERAL;
    std::string literal;
    std::vector<int32_t> special;
    Dfa dfa;
    std::shared_ptr<CountedBase> base;
    int low = 0;
    int high = -1;
    int32_t start = 0;
    // A JSON string in which, from some point on, every character may follow: the leaf of all strings, which most tokens
    // lead into, and this one's states by what they are equal to there.
    std::shared_ptr<const Leaf> plain;
    int32_t plain_body = DEAD;

    int32_t next(int32_t state, uint8_t byte) const;
    bool accepting(int32_t state) const;
    // Accepting, and no byte leads on.
    bool closed(int32_t state) const;
    uint32_t distance(int32_t state) const;
    // The only byte that leads on, -1 when there is none, -2 when there are several.
    int single(int32_t state) const;
    // A byte on a shortest way to acceptance; distance(state) is above 0.
    uint8_t toward(int32_t state) const;
    void finish();  // call once, when the members are set
    void compare_with(std::shared_ptr<const Leaf> plain);
    size_t nbytes() const;

    // For TABLE leaves.
    std::shared_ptr<const LeafView> view(int32_t state, const Vocabulary& vocab) const;

private:
    int32_t counted_next(int32_t state, uint8_t byte) const;
    bool same_from(int32_t state, std::vector<int32_t>& same) const;
    void look(int32_t state, const Vocabulary& vocab, LeafView& view) const;
    void look_beside_plain(int32_t state, const Vocabulary& vocab, LeafView& view) const;

    std::vector<int32_t> same_;   // by state: the state of `plain` with the same future, or DEAD
    std::vector<uint8_t> closed_;
    std::vector<int16_t> single_;
    mutable std::mutex lock_;
    mutable std::unordered_map<int32_t, std::shared_ptr<const LeafView>> views_;
    mutable size_t view_bytes_ = 0;
};

// The view of a counted leaf from a state of its base.
CountedView& counted_view(CountedBase& base, int sub, const Vocabulary& vocab);

// Leaves of one vocabulary, each made once and shared by every grammar that has it.
class LeafStore {
public:
    LeafStore(size_t max_states, size_t max_work) : max_states_(max_states), max_work_(max_work) {}
    std::shared_ptr<const Leaf> leaf(const Node& node, bool json);
    std::shared_ptr<const Leaf> literal(const std::string& text);

private:
    std::shared_ptr<const Leaf> make(const Node& node, bool json);
    std::shared_ptr<CountedBase> base(const Node& chars, bool json);
    std::shared_ptr<const Leaf> all_strings();

    std::shared_ptr<const Leaf> all_strings_;
    size_t max_states_;
    size_t max_work_;
    std::mutex lock_;
    std::map<std::vector<int32_t>, std::weak_ptr<const Leaf>> leaves_;
    std::map<std::vector<int32_t>, std::weak_ptr<CountedBase>> bases_;
    std::vector<std::shared_ptr<const Leaf>> recent_;  // kept alive although no grammar uses them now
    size_t oldest_ = 0;
};

std::string utf8(const std::vector<int>& code_points);

}  // namespace sglite
