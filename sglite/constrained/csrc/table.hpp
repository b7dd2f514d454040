// Deterministic automata as rows of exceptions, and what is done with them whatever their letters are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ir.hpp"

namespace sglite {

// What one construction may take. Everything that loops spends from it.
class Budget {
public:
    Budget(size_t states, size_t work) : max_states_(states), max_work_(work) {}
    void spend(size_t steps) {
        spent_ += steps;
        if (spent_ > max_work_) refuse("takes more than " + std::to_string(max_work_) + " steps to work out");
    }
    void states(size_t count) const {
        if (count > max_states_) refuse("needs more than " + std::to_string(max_states_) + " states");
    }

private:
    [[noreturn]] static void refuse(const std::string& what) {
        throw Refusal{"too complex: an expression " + what + "; lower the counts or simplify the patterns"};
    }
    size_t max_states_;
    size_t max_work_;
    size_t spent_ = 0;
};

// Sequences of integers, numbered in the order in which they first come.
class Interner {
public:
    int add(const int* data, size_t length);
    int size() const { return static_cast<int>(begin_.size()) - 1; }
    const int* data(int id) const { return pool_.data() + begin_[id]; }
    size_t length(int id) const { return begin_[id + 1] - begin_[id]; }

private:
    void grow();
    std::vector<int> pool_;
    std::vector<size_t> begin_{0};
    std::vector<uint32_t> hashes_;
    std::vector<int> slots_;
};

struct Step {
    int letter;
    int to;  // -1: dead
};

// States 0 (the start) to size() - 1; none at all when there is no text. A state leads to `rest`, but for the letters
// of its exceptions, ascending and none of them leading to `rest`. So that equal rows are written alike, either
// letter 0 is an exception of no state, or `rest` is dead in all of them.
struct Table {
    std::vector<int> rest;
    std::vector<uint8_t> accepting;
    std::vector<size_t> begin{0};
    std::vector<Step> steps;

    int size() const { return static_cast<int>(rest.size()); }
    const Step* first(int state) const { return steps.data() + begin[state]; }
    const Step* last(int state) const { return steps.data() + begin[state + 1]; }
    int to(int state, int letter) const;
    // Appends a state; steps to `rest` itself are left out.
    void add(bool accepts, int rest_to, const std::vector<Step>& exceptions);
};

// Without the states that never reach acceptance or are never reached.
Table trim(const Table& table, Budget& budget);

// The smallest automaton of the same texts (`table` is trimmed).
Table minimise(const Table& table, Budget& budget);

// Fewest letters from each state to acceptance (`table` is trimmed).
std::vector<uint32_t> distances(const Table& table);

}  // namespace sglite
