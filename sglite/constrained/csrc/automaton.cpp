#include "automaton.hpp"

#include <algorithm>
#include <memory>

#include "characters.hpp"
#include "classes.hpp"
#include "spelling.hpp"
#include "table.hpp"

namespace sglite {
namespace {

// Spells the characters of a table. Bytes that no state tells apart so far are the letters of the new one.
class Speller {
public:
    Speller(const Table& characters, const Classes& classes, bool json, Budget& budget)
        : characters_(characters), classes_(classes), json_(json), budget_(budget), places_(json ? 2 : 0),
          intervals_of_(classes.count) {
        // All characters are alike where no state of the smallest automaton tells any from the rest.
        any_escape_ = json && characters.steps.empty();
        for (size_t at = 0; at < classes.intervals.size(); at++)
            intervals_of_[classes.intervals[at].number].push_back(static_cast<int>(at));
    }

    // State 0 is the start. `firsts` receives the first byte of every letter.
    Table run(std::vector<int>& firsts) {
        for (int state = 0; state < characters_.size(); state++) spell(state);
        letters(firsts);
        Table out;
        if (json_) {
            write(out, false, {{'"', '"', places_}});
            write(out, true, {});
        }
        for (int state = 0; state < characters_.size(); state++)
            write(out, !json_ && characters_.accepting[state], rows_[state]);
        Edges edges;
        for (int node = 0; node < nodes_.size(); node++) {
            edges.clear();
            for (const int* at = nodes_.data(node); at != nodes_.data(node) + nodes_.length(node); at += 3)
                edges.push_back({at[0], at[1], at[2]});
            write(out, false, edges);
        }
        return out;
    }

private:
    void spell(int state) {
        targets_.clear();
        key_.assign({json_ && characters_.accepting[state], symbol(characters_.rest[state])});
        for (const Step* step = characters_.first(state); step != characters_.last(state); step++) {
            key_.push_back(step->letter);
            key_.push_back(symbol(step->to));
        }
        const int known = keys_.add(key_.data(), key_.size());
        if (known == static_cast<int>(shapes_.size())) shapes_.push_back(make_shape(state));
        const Shape& shape = *shapes_[known];
        if (json_ && characters_.accepting[state]) targets_.push_back(1);
        made_.clear();
        for (const Edges& edges : shape.nodes) {
            key_.clear();
            for (const ByteEdge& edge : edges) key_.insert(key_.end(), {edge.low, edge.high, resolved(edge.to)});
            budget_.spend(4 + key_.size());
            made_.push_back(places_ + characters_.size() + nodes_.add(key_.data(), key_.size()));
        }
        rows_.push_back(shape.first);
        for (ByteEdge& edge : rows_.back()) edge.to = resolved(edge.to);
        budget_.spend(4 * rows_.back().size());
        budget_.states(places_ + characters_.size() + nodes_.size());
    }

    // States that this one leads to, numbered ~0, ~1, ... as they come; 0 when dead.
    int symbol(int state) {
        if (state < 0) return 0;
        const int target = places_ + state;
        auto found = std::find(targets_.begin(), targets_.end(), target);
        budget_.spend(1 + (targets_.size() >> 3));
        if (found == targets_.end()) found = targets_.insert(found, target);
        return ~static_cast<int>(found - targets_.begin());
    }

    int resolved(int to) const { return to < 0 ? targets_[~to] : made_[to]; }

    std::unique_ptr<Shape> make_shape(int state) {
        Spelling spelling;
        spelling.json = json_;
        spelling.any_escape = any_escape_;
        if (json_ && characters_.accepting[state]) spelling.quote = ~static_cast<int>(targets_.size());
        return std::make_unique<Shape>(spans_of(state), spelling);
    }

    // Where the characters lead, in symbols.
    std::vector<Span> spans_of(int state) {
        std::vector<Span> exceptions, spans;
        for (const Step* step = characters_.first(state); step != characters_.last(state); step++)
            for (const int at : intervals_of_[step->letter])
                exceptions.push_back({classes_.intervals[at].first, classes_.intervals[at].last, symbol(step->to)});
        std::sort(exceptions.begin(), exceptions.end(), [](const Span& a, const Span& b) { return a.low < b.low; });
        budget_.spend(32 + 16 * exceptions.size());
        int next = 0;  // the first code point not looked at
        const auto add = [&](int low, int high, int to) {
            if (to == 0 || low > high) return;
            if (!spans.empty() && spans.back().high + 1 == low && spans.back().to == to) {
                spans.back().high = high;
            } else {
                spans.push_back({low, high, to});
            }
        };
        const auto fill = [&](int end) {  // with what all others lead to, surrogates left out
            const int rest = symbol(characters_.rest[state]);
            add(next, std::min(end, 0xD800) - 1, rest);
            add(std::max(next, 0xE000), end - 1, rest);
        };
        for (const Span& span : exceptions) {
            fill(span.low);
            add(span.low, span.high, span.to);
            next = span.high + 1;
        }
        fill(0x110000);
        return spans;
    }

    void letters(std::vector<int>& firsts) {
        bool begins[257] = {true};
        const auto mark = [&](int low, int high) { begins[low] = begins[high + 1] = true; };
        if (json_) mark('"', '"');
        for (const Edges& edges : rows_)
            for (const ByteEdge& edge : edges) mark(edge.low, edge.high);
        for (int node = 0; node < nodes_.size(); node++)
            for (const int* at = nodes_.data(node); at != nodes_.data(node) + nodes_.length(node); at += 3)
                mark(at[0], at[1]);
        for (int byte = 0; byte < 256; byte++) {
            if (begins[byte]) firsts.push_back(byte);
            letter_of_[byte] = static_cast<int>(firsts.size()) - 1;
        }
    }

    void write(Table& out, bool accepts, const Edges& edges) {
        steps_.clear();
        for (const ByteEdge& edge : edges)
            for (int letter = letter_of_[edge.low]; letter <= letter_of_[edge.high]; letter++)
                steps_.push_back({letter, edge.to});
        budget_.spend(2 + 2 * steps_.size());
        out.add(accepts, -1, steps_);
    }

    const Table& characters_;
    const Classes& classes_;
    const bool json_;
    Budget& budget_;
    const int places_;  // of the states: 0 is before the opening quote, 1 after the closing one
    std::vector<std::vector<int>> intervals_of_;  // by class
    bool any_escape_;
    Interner keys_, nodes_;
    std::vector<std::unique_ptr<Shape>> shapes_;
    std::vector<Edges> rows_;
    std::vector<int> key_, targets_, made_;
    std::vector<Step> steps_;
    int letter_of_[256] = {};
};

// Whether the middle of a character may do what a state does, where only JSON's escapes are in doubt: the bytes that
// lead on and the way to acceptance are compared. UTF-8 begins and goes on with different bytes.
bool may_coincide(const Table& bytes, int first_state, int first_node) {
    const std::vector<uint32_t> far = distances(bytes);
    Interner known;
    std::vector<int> letters;
    const auto number = [&](int state) {
        letters.assign({static_cast<int>(far[state])});
        for (const Step* step = bytes.first(state); step != bytes.last(state); step++) letters.push_back(step->letter);
        return known.add(letters.data(), letters.size());
    };
    int nodes = 0;
    for (int state = first_node; state < bytes.size(); state++) nodes = std::max(nodes, number(state) + 1);
    for (int state = first_state; state < first_node; state++)
        if (number(state) < nodes) return true;
    return false;
}

// Numbers of the columns of a matrix, equal ones alike, in the order in which they first come.
std::vector<int> joined(const std::vector<int32_t>& matrix, size_t columns) {
    std::vector<uint64_t> hashes(columns, 0);
    for (size_t at = 0; at < matrix.size(); at += columns)
        for (size_t i = 0; i < columns; i++)
            hashes[i] = (hashes[i] ^ static_cast<uint32_t>(matrix[at + i])) * 0x9E3779B97F4A7C15ull + (hashes[i] >> 29);
    std::vector<int> numbers(columns), firsts;
    for (size_t i = 0; i < columns; i++) {
        const auto same = [&](int other) {
            if (hashes[other] != hashes[i]) return false;
            for (size_t at = 0; at < matrix.size(); at += columns)
                if (matrix[at + i] != matrix[at + other]) return false;
            return true;
        };
        const auto found = std::find_if(firsts.begin(), firsts.end(), same);
        numbers[i] = static_cast<int>(found - firsts.begin());
        if (found == firsts.end()) firsts.push_back(static_cast<int>(i));
    }
    return numbers;
}

// Writes a table out in full, numbered breadth first, and joins the bytes that all states treat alike.
Dfa dense(const Table& table, const std::vector<int>& firsts, Budget& budget) {
    const size_t letters = firsts.size();
    budget.spend(table.size() * (letters / 4 + 1) + table.steps.size());
    const std::vector<uint32_t> far = distances(table);
    std::vector<int> numbers(table.size(), -1), order{0};
    numbers[0] = 0;
    std::vector<int32_t> matrix;
    Dfa dfa;
    for (size_t i = 0; i < order.size(); i++) {
        matrix.resize(matrix.size() + letters, -1);
        int32_t* row = matrix.data() + i * letters;
        for (const Step* step = table.first(order[i]); step != table.last(order[i]); step++) {
            if (numbers[step->to] < 0) {
                numbers[step->to] = static_cast<int>(order.size());
                order.push_back(step->to);
            }
            row[step->letter] = numbers[step->to];
        }
        dfa.accepting.push_back(table.accepting[order[i]]);
        dfa.distance.push_back(far[order[i]]);
    }
    const std::vector<int> columns = joined(matrix, letters);
    dfa.states = static_cast<int>(order.size());
    dfa.classes = *std::max_element(columns.begin(), columns.end()) + 1;
    for (size_t i = 0; i < letters; i++)
        std::fill(dfa.class_of + firsts[i], dfa.class_of + (i + 1 < letters ? firsts[i + 1] : 256), columns[i]);
    dfa.next.resize(static_cast<size_t>(dfa.states) * dfa.classes);
    for (size_t state = 0; state < order.size(); state++)
        for (size_t i = 0; i < letters; i++)
            dfa.next[state * dfa.classes + columns[i]] = matrix[state * letters + i];
    return dfa;
}

}  // namespace

Dfa build_dfa(const Node& expr, bool json, size_t max_states, size_t max_work) {
    Budget budget(max_states, max_work);
    const Classes classes(expr, budget);
    Exprs exprs(classes, budget);
    const Table characters = character_table(*exprs.read(expr), exprs, classes.count, budget);
    if (characters.size() == 0) throw Refusal{"matches nothing: no text can satisfy it; relax what contradicts itself", true};
    std::vector<int> firsts;
    Table bytes = Speller(characters, classes, json, budget).run(firsts);
    if (json && may_coincide(bytes, 2, 2 + characters.size())) bytes = minimise(bytes, budget);
    return dense(bytes, firsts, budget);
}

}  // namespace sglite
