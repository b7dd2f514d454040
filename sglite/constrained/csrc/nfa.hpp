// A nondeterministic automaton over classes of characters, and the sets of its states made deterministic.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "classes.hpp"
#include "table.hpp"

namespace sglite {

class Nfa {
public:
    Nfa(int classes, Budget& budget) : classes_(classes), budget_(budget) {}

    int state();
    void free(int from, int to);                  // reads nothing
    void letter(int from, int number, int to);    // reads one class
    void set(int from, const ClassSet& set, int to);
    void table(int from, const Table& table, int to);  // reads a text of the table
    // The states made since `first` are copy `rank` of a part, one group number from `group` on for each of them. From
    // a copy of less rank leads every text that leads on from the same state of a greater one, so sets of states do
    // without the latter.
    void copy(int first, int group, int rank);
    int groups(int count);  // the first of so many new group numbers
    int size() const { return states_; }

    // Every text that leads from `start` to `end`, trimmed.
    Table determinise(int start, int end);

private:
    struct Edge {
        int from, set, to;  // set: a place in sets_, or ~class
    };
    // Edges by the state that they leave, made when all are known.
    struct Leaving {
        std::vector<size_t> begin;
        std::vector<Edge> edges;
        Leaving(std::vector<Edge> all, int states);
    };
    void close(std::vector<int>& states, const Leaving& frees, const Leaving& reads);
    void gather(const int* states, size_t count, const Leaving& reads);
    void drop_dominated(std::vector<int>& states);
    int number_of(std::vector<int>& states, const Leaving& frees, const Leaving& reads);

    int classes_;
    Budget& budget_;
    int states_ = 0;
    int end_ = 0;
    std::vector<ClassSet> sets_;
    std::vector<Edge> reads_, frees_;
    std::vector<Edge> ranks_;  // of a state in a group: `to` is the rank, less is more
    std::unique_ptr<Leaving> ranks_of_;
    int groups_ = 0;
    std::vector<int> best_;  // of each group, while one set of states is looked at
    Interner sets_of_states_;
    std::vector<int> stamps_;
    int stamp_ = 0;
    // For one set of states: what each touched class leads to beside what those of `outside_` do.
    std::vector<int> touched_;
    std::vector<std::vector<int>> by_class_;
    std::vector<uint8_t> is_touched_;
    std::vector<Edge> outside_;
};

}  // namespace sglite
