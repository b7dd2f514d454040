#include "characters.hpp"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "nfa.hpp"

namespace sglite {
namespace {

constexpr uint32_t ENDLESS = UINT32_MAX;

class Builder {
public:
    Builder(Exprs& exprs, int classes, Budget& budget) : exprs_(exprs), classes_(classes), budget_(budget) {}

    Table build(const Expr& expr) {
        if (expr.nothing) return Table();
        if (expr.kind == Expr::AND) return both(expr);
        if (expr.kind == Expr::NOT) return complement(build(*expr.kids[0]));
        Nfa nfa(classes_, budget_);
        const int start = nfa.state(), end = nfa.state();
        write(nfa, expr, start, end);
        return minimise(nfa.determinise(start, end), budget_);
    }

private:
    // Adds the ways from one state to another on which a text of `expr` is read. No way leads back to `from` or on
    // from `to`, so expressions can share them.
    void write(Nfa& nfa, const Expr& expr, int from, int to) {
        if (expr.nothing) return;
        switch (expr.kind) {
            case Expr::WORD: return write_word(nfa, expr.word, from, to);
            case Expr::SET: return nfa.set(from, expr.set, to);
            case Expr::SEQ: return write_sequence(nfa, expr.kids, from, to);
            case Expr::ALT: return write_choice(nfa, expr.kids, from, to);
            case Expr::REPEAT: return write_repeat(nfa, expr, from, to);
            default: return nfa.table(from, built(expr), to);
        }
    }

    // The table of what is written down several times.
    const Table& built(const Expr& expr) {
        const auto found = built_.find(&expr);
        return found != built_.end() ? found->second : built_.emplace(&expr, build(expr)).first->second;
    }

    void write_word(Nfa& nfa, const std::vector<int>& word, int from, int to) {
        if (word.empty()) nfa.free(from, to);
        for (size_t i = 0; i < word.size(); i++) {
            const int next = i + 1 < word.size() ? nfa.state() : to;
            nfa.letter(from, word[i], next);
            from = next;
        }
    }

    void write_sequence(Nfa& nfa, const std::vector<const Expr*>& kids, int from, int to) {
        if (kids.empty()) nfa.free(from, to);
        for (size_t i = 0; i < kids.size(); i++) {
            const int next = i + 1 < kids.size() ? nfa.state() : to;
            write(nfa, *kids[i], from, next);
            from = next;
        }
    }

    // Words share their beginnings, so that thousands of them make small sets of states.
    void write_choice(Nfa& nfa, const std::vector<const Expr*>& kids, int from, int to) {
        std::unordered_map<uint64_t, int> following;
        for (const Expr* kid : kids) {
            if (kid->kind != Expr::WORD || kid->word.empty()) {
                write(nfa, *kid, from, to);
                continue;
            }
            int at = from;
            for (size_t i = 0; i + 1 < kid->word.size(); i++) {
                const uint64_t key = static_cast<uint64_t>(at) << 32 | static_cast<uint32_t>(kid->word[i]);
                const auto found = following.emplace(key, -1);
                if (found.second) {
                    found.first->second = nfa.state();
                    nfa.letter(at, kid->word[i], found.first->second);
                }
                at = found.first->second;
            }
            nfa.letter(at, kid->word.back(), to);
        }
    }

    void write_repeat(Nfa& nfa, const Expr& expr, int from, int to) {
        const Expr& item = *expr.kids[0];
        const int64_t copies = expr.high == NO_BOUND ? std::max<int64_t>(expr.low - 1, 0) : expr.high;
        int group = -1;
        for (int64_t done = 0; done < copies; done++) {
            if (expr.high != NO_BOUND && done >= expr.low) nfa.free(from, to);
            const int next = nfa.state();
            write(nfa, item, from, next);
            if (expr.high != NO_BOUND && done + 1 >= expr.low) {  // what may end here: the earlier, the more can follow
                if (group < 0) group = nfa.groups(nfa.size() - next);
                nfa.copy(next, group, static_cast<int>(done));
            }
            from = next;
        }
        if (expr.high != NO_BOUND) return nfa.free(from, to);
        const int before = nfa.state(), after = nfa.state();
        nfa.free(from, before);
        write(nfa, item, before, after);
        nfa.free(after, before);
        nfa.free(expr.low > 0 ? after : before, to);
    }

    Table universal() const {
        Table table;
        table.add(true, 0, {});
        return table;
    }

    Table complement(const Table& table) {
        if (table.size() == 0) return universal();
        budget_.spend(table.size() + table.steps.size());
        Table out;
        const int other = table.size();  // where nothing of `table` can follow any more
        std::vector<Step> steps;
        for (int state = 0; state < table.size(); state++) {
            steps.assign(table.first(state), table.last(state));
            for (Step& step : steps)
                if (step.to < 0) step.to = other;
            out.add(!table.accepting[state], table.rest[state] < 0 ? other : table.rest[state], steps);
        }
        out.add(true, other, {});
        return trim(out, budget_);
    }

    // An intersection: lengths are counted last, complements are taken together.
    Table both(const Expr& expr) {
        int64_t low = 0, high = NO_BOUND;
        std::vector<const Expr*> denied;
        std::vector<Table> tables;
        for (const Expr* kid : expr.kids) {
            const bool any = kid->kind == Expr::REPEAT && kid->kids[0]->kind == Expr::SET && kid->kids[0]->set.all();
            if (any) {
                low = std::max(low, kid->low);
                high = std::min(high, kid->high);
            } else if (kid->kind == Expr::NOT) {
                denied.push_back(kid->kids[0]);
            } else {
                tables.push_back(build(*kid));
            }
        }
        if (!denied.empty()) tables.push_back(complement(build(*exprs_.alt(denied))));
        if (tables.empty()) tables.push_back(universal());
        std::stable_sort(tables.begin(), tables.end(),
                         [](const Table& a, const Table& b) { return a.steps.size() < b.steps.size(); });
        Table result = std::move(tables[0]);
        for (size_t i = 1; i < tables.size(); i++) result = minimise(product(result, tables[i]), budget_);
        return minimise(limited(result, low, high), budget_);
    }

    Table product(const Table& left, const Table& right) {
        if (left.size() == 0 || right.size() == 0) return Table();
        std::unordered_map<uint64_t, int> numbers;
        std::vector<std::pair<int, int>> pairs;
        const auto number = [&](int a, int b) {
            if (a < 0 || b < 0) return -1;
            const auto found = numbers.emplace(static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b), pairs.size());
            if (found.second) pairs.push_back({a, b});
            return found.first->second;
        };
        number(0, 0);
        Table out;
        std::vector<Step> steps;
        for (size_t i = 0; i < pairs.size(); i++) {
            budget_.states(pairs.size());
            const auto [a, b] = pairs[i];
            steps.clear();
            const int rest = number(left.rest[a], right.rest[b]);
            const Step* one = left.first(a);
            const Step* two = right.first(b);
            while (one != left.last(a) || two != right.last(b)) {
                const bool from_one = two == right.last(b) || (one != left.last(a) && one->letter <= two->letter);
                const bool from_two = one == left.last(a) || (two != right.last(b) && two->letter <= one->letter);
                const int letter = from_one ? one->letter : two->letter;
                const int to_left = from_one ? (one++)->to : left.rest[a];
                const int to_right = from_two ? (two++)->to : right.rest[b];
                steps.push_back({letter, number(to_left, to_right)});
            }
            budget_.spend(8 + 4 * steps.size());
            out.add(left.accepting[a] && right.accepting[b], rest, steps);
        }
        return trim(out, budget_);
    }

    // Most letters from each state to acceptance, ENDLESS where there is no most (`table` is trimmed).
    static std::vector<uint32_t> longest(const Table& table) {
        std::vector<int> entries(table.size(), 0), order;
        const auto each = [&](int state, auto see) {
            if (table.rest[state] >= 0) see(table.rest[state]);
            for (const Step* step = table.first(state); step != table.last(state); step++)
                if (step->to >= 0) see(step->to);
        };
        std::vector<std::vector<int>> before(table.size());
        for (int state = 0; state < table.size(); state++)
            each(state, [&](int to) { before[to].push_back(state), entries[state]++; });
        std::vector<uint32_t> far(table.size(), ENDLESS);
        for (int state = 0; state < table.size(); state++)
            if (entries[state] == 0) order.push_back(state);
        for (size_t i = 0; i < order.size(); i++) {
            far[order[i]] = 0;
            each(order[i], [&](int to) { far[order[i]] = std::max(far[order[i]], far[to] + 1); });
            for (const int state : before[order[i]])
                if (--entries[state] == 0) order.push_back(state);
        }
        return far;
    }

    // The texts of `low` to `high` letters. A count is kept while it can still matter.
    Table limited(const Table& table, int64_t low, int64_t high) {
        if (table.size() == 0 || high < low) return Table();
        const std::vector<uint32_t> near = distances(table), far = longest(table);
        budget_.spend(2 * (table.size() + table.steps.size()));
        if (near[0] >= low && (high == NO_BOUND || (far[0] != ENDLESS && far[0] <= high))) return table;
        constexpr int64_t FREE = -1;  // every text from here is of a right length
        std::map<std::pair<int, int64_t>, int> numbers;
        std::vector<std::pair<int, int64_t>> places;
        const auto number = [&](int state, int64_t count) {
            if (state < 0) return -1;
            if (count != FREE) {
                const int64_t least = count + near[state], most = far[state] == ENDLESS ? NO_BOUND : count + far[state];
                if (least > high || most < low) return -1;
                if (least >= low && most <= high) count = FREE;
            }
            const auto found = numbers.emplace(std::make_pair(state, count), static_cast<int>(places.size()));
            if (found.second) places.push_back({state, count});
            return found.first->second;
        };
        Table out;
        if (number(0, 0) < 0) return out;
        std::vector<Step> steps;
        for (size_t i = 0; i < places.size(); i++) {
            budget_.states(places.size());
            const auto [state, count] = places[i];
            const int64_t next = count == FREE ? FREE : count + 1;
            steps.clear();
            for (const Step* step = table.first(state); step != table.last(state); step++)
                steps.push_back({step->letter, number(step->to, next)});
            budget_.spend(16 + 4 * steps.size());
            const int rest = number(table.rest[state], next);
            out.add(table.accepting[state] && (count == FREE || count >= low), rest, steps);
        }
        return trim(out, budget_);
    }

    Exprs& exprs_;
    int classes_;
    Budget& budget_;
    std::map<const Expr*, Table> built_;
};

}  // namespace

Table character_table(const Expr& expr, Exprs& exprs, int classes, Budget& budget) {
    return Builder(exprs, classes, budget).build(expr);
}

}  // namespace sglite
