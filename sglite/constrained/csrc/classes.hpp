// Classes of characters that no part of an expression tells apart, and the expression over them, simplified.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "ir.hpp"
#include "table.hpp"

namespace sglite {

// Some classes: those listed, or all but those listed when it holds class 0. The list is ascending, without 0.
struct ClassSet {
    bool outside = false;
    std::vector<int> listed;
    bool has(int number) const;
    bool all() const { return outside && listed.empty(); }
};

struct Interval {
    int first, last;  // code points, surrogates never
    int number;       // of the class
};

// The classes, 0 being the widest. A letter of a TEXT is a class by itself.
class Classes {
public:
    Classes(const Node& expr, Budget& budget);
    int count = 0;
    std::vector<Interval> intervals;  // ascending
    int of(int code) const;
    ClassSet of_set(const std::vector<int>& ranges) const;

private:
    using Ranges = std::vector<std::pair<int, int>>;
    void collect(const Node& node, int depth);
    void divide(Budget& budget);
    static Ranges scalars(const std::vector<int>& ranges);
    std::map<std::vector<int>, Ranges> sets_;
    std::vector<int> letters_;
};

constexpr int64_t NO_BOUND = INT64_MAX;

// A node over classes.
struct Expr {
    enum Kind { WORD, SET, SEQ, ALT, REPEAT, AND, NOT };
    Kind kind = SEQ;
    std::vector<int> word;
    ClassSet set;
    int64_t low = 0, high = 0;
    std::vector<const Expr*> kids;
    bool nullable = false;
    bool nothing = false;  // surely without a text
    bool algebra = false;  // an AND or a NOT is in it
};

// Makes expressions and owns them.
class Exprs {
public:
    explicit Exprs(const Classes& classes, Budget& budget) : classes_(classes), budget_(budget) {}
    const Expr* read(const Node& node);
    const Expr* alt(std::vector<const Expr*> kids);

private:
    Expr* make(Expr::Kind kind);
    const Expr* nothing();
    const Expr* empty();
    const Expr* word(const std::vector<int>& codes);
    const Expr* seq(const std::vector<const Expr*>& kids);
    const Expr* repeat(const Expr* item, int64_t low, int64_t high);
    const Expr* algebra(Expr::Kind kind, std::vector<const Expr*> kids);
    const Expr* not_empty(const Expr* item);

    const Classes& classes_;
    Budget& budget_;
    std::deque<Expr> made_;
};

}  // namespace sglite
