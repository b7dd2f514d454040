#include "table.hpp"

#include <algorithm>
#include <cstring>

namespace sglite {
namespace {

// Who leads to each state, at least once.
struct Backward {
    std::vector<size_t> begin;
    std::vector<int> from;

    explicit Backward(const Table& table) : begin(table.size() + 1, 0) {
        each(table, [&](int, int to) { begin[to + 1]++; });
        for (size_t i = 1; i < begin.size(); i++) begin[i] += begin[i - 1];
        from.resize(begin.back());
        std::vector<size_t> at(begin.begin(), begin.end() - 1);
        each(table, [&](int state, int to) { from[at[to]++] = state; });
    }

    template <class See>
    static void each(const Table& table, See see) {
        for (int state = 0; state < table.size(); state++) {
            int before = table.rest[state];
            if (before >= 0) see(state, before);
            for (const Step* step = table.first(state); step != table.last(state); step++) {
                if (step->to >= 0 && step->to != before) see(state, step->to);
                before = step->to;
            }
        }
    }
};

// Partition refinement. States of one block look the same as far as is known; a state is dirty when a state that it
// leads to has changed its block since it was last compared with its own. The largest part of a divided block keeps
// the number, so a state changes it at most log n times (Hopcroft 1971; by signatures as in Blom and Orzan 2003).
class Refinement {
public:
    Refinement(const Table& table, Budget& budget)
        : table_(table), budget_(budget), backward_(table), block_(table.size()), place_(table.size()) {}

    Table run() {
        begin_blocks();
        while (!waiting_.empty()) {
            const int block = waiting_.back();
            waiting_.pop_back();
            divide(block);
        }
        return quotient();
    }

private:
    struct Block {
        int begin, end;
        int dirty;  // the first so many members are
        bool queued;
    };

    void begin_blocks() {
        // What tells states apart at once: how far acceptance is.
        const std::vector<uint32_t> far = distances(table_);
        order_.resize(table_.size());
        for (int i = 0; i < table_.size(); i++) order_[i] = i;
        std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return far[a] < far[b]; });
        for (int i = 0; i < table_.size(); i++) {
            if (i == 0 || far[order_[i]] != far[order_[i - 1]]) blocks_.push_back({i, i, 0, true});
            blocks_.back().end = i + 1;
            blocks_.back().dirty++;
            block_[order_[i]] = static_cast<int>(blocks_.size()) - 1;
            place_[order_[i]] = i;
        }
        for (int i = static_cast<int>(blocks_.size()) - 1; i >= 0; i--) waiting_.push_back(i);
    }

    int signature(int state) {
        row_.clear();
        const int rest = table_.rest[state] < 0 ? -1 : block_[table_.rest[state]];
        row_.push_back(rest);
        for (const Step* step = table_.first(state); step != table_.last(state); step++) {
            const int to = step->to < 0 ? -1 : block_[step->to];
            if (to == rest) continue;
            row_.push_back(step->letter);
            row_.push_back(to);
        }
        budget_.spend(row_.size());
        return signatures_.add(row_.data(), row_.size());
    }

    void divide(int number) {
        const Block block = blocks_[number];
        blocks_[number].queued = false;
        blocks_[number].dirty = 0;
        if (block.end - block.begin == 1) return;
        parts_.clear();
        for (int i = block.begin; i < block.begin + block.dirty; i++)
            parts_.push_back({signature(order_[i]), order_[i]});
        const int middle = block.begin + block.dirty;
        const int clean = middle < block.end ? signature(order_[middle]) : -1;
        // Those that look like the clean ones come last, beside them.
        std::sort(parts_.begin(), parts_.end(), [clean](const Part& a, const Part& b) {
            if ((a.signature == clean) != (b.signature == clean)) return b.signature == clean;
            return a.signature != b.signature ? a.signature < b.signature : a.state < b.state;
        });
        for (size_t i = 0; i < parts_.size(); i++) put(parts_[i].state, block.begin + static_cast<int>(i));
        std::vector<std::pair<int, int>> spans;
        for (size_t i = 0; i < parts_.size(); i++) {
            if (i == 0 || parts_[i].signature != parts_[i - 1].signature)
                spans.push_back({block.begin + static_cast<int>(i), 0});
            spans.back().second = block.begin + static_cast<int>(i) + 1;
        }
        if (parts_.back().signature == clean) {
            spans.back().second = block.end;
        } else if (clean >= 0) {
            spans.push_back({middle, block.end});
        }
        separate(number, spans);
    }

    void put(int state, int at) {
        order_[at] = state;
        place_[state] = at;
    }

    void separate(int number, const std::vector<std::pair<int, int>>& spans) {
        size_t largest = 0;
        for (size_t i = 1; i < spans.size(); i++)
            if (spans[i].second - spans[i].first > spans[largest].second - spans[largest].first) largest = i;
        blocks_[number].begin = spans[largest].first;
        blocks_[number].end = spans[largest].second;
        for (size_t i = 0; i < spans.size(); i++) {
            if (i == largest) continue;
            blocks_.push_back({spans[i].first, spans[i].second, 0, false});
            for (int at = spans[i].first; at < spans[i].second; at++)
                block_[order_[at]] = static_cast<int>(blocks_.size()) - 1;
        }
        for (size_t i = 0; i < spans.size(); i++) {
            if (i == largest) continue;
            moved_.assign(order_.begin() + spans[i].first, order_.begin() + spans[i].second);
            for (const int state : moved_) soil_those_before(state);
        }
    }

    void soil_those_before(int state) {
        for (size_t i = backward_.begin[state]; i < backward_.begin[state + 1]; i++) {
            const int from = backward_.from[i];
            Block& block = blocks_[block_[from]];
            const int edge = block.begin + block.dirty;
            if (place_[from] < edge) continue;
            const int other = order_[edge];
            const int at = place_[from];
            put(other, at);
            put(from, edge);
            block.dirty++;
            if (!block.queued) {
                block.queued = true;
                waiting_.push_back(block_[from]);
            }
        }
        budget_.spend(backward_.begin[state + 1] - backward_.begin[state]);
    }

    Table quotient() {
        // Numbered by their first states, so that the start stays 0.
        std::vector<int> number(blocks_.size(), -1);
        std::vector<int> firsts;
        for (int state = 0; state < table_.size(); state++) {
            if (number[block_[state]] >= 0) continue;
            number[block_[state]] = static_cast<int>(firsts.size());
            firsts.push_back(state);
        }
        Table out;
        std::vector<Step> steps;
        const auto mapped = [&](int to) { return to < 0 ? -1 : number[block_[to]]; };
        for (const int state : firsts) {
            steps.clear();
            for (const Step* step = table_.first(state); step != table_.last(state); step++)
                steps.push_back({step->letter, mapped(step->to)});
            out.add(table_.accepting[state], mapped(table_.rest[state]), steps);
        }
        return out;
    }

    struct Part {
        int signature;
        int state;
    };

    const Table& table_;
    Budget& budget_;
    Backward backward_;
    std::vector<int> block_, order_, place_, waiting_, row_, moved_;
    std::vector<Block> blocks_;
    std::vector<Part> parts_;
    Interner signatures_;
};

}  // namespace

int Interner::add(const int* data, size_t length) {
    if (slots_.size() < 2 * (hashes_.size() + 1)) grow();
    uint64_t mixed = length;
    for (size_t i = 0; i < length; i++) {
        mixed = (mixed ^ static_cast<uint32_t>(data[i])) * 0x9E3779B97F4A7C15ull;
        mixed ^= mixed >> 29;
    }
    const uint32_t hash = static_cast<uint32_t>(mixed ^ mixed >> 32);
    const size_t mask = slots_.size() - 1;
    size_t at = hash & mask;
    for (; slots_[at] >= 0; at = (at + 1) & mask) {
        const int id = slots_[at];
        if (hashes_[id] == hash && this->length(id) == length &&
            (length == 0 || std::memcmp(this->data(id), data, length * sizeof(int)) == 0))
            return id;
    }
    slots_[at] = size();
    hashes_.push_back(hash);
    pool_.insert(pool_.end(), data, data + length);
    begin_.push_back(pool_.size());
    return slots_[at];
}

void Interner::grow() {
    slots_.assign(slots_.empty() ? 64 : 2 * slots_.size(), -1);
    const size_t mask = slots_.size() - 1;
    for (size_t id = 0; id < hashes_.size(); id++) {
        size_t at = hashes_[id] & mask;
        while (slots_[at] >= 0) at = (at + 1) & mask;
        slots_[at] = static_cast<int>(id);
    }
}

int Table::to(int state, int letter) const {
    const Step* found = std::lower_bound(first(state), last(state), letter,
                                         [](const Step& step, int wanted) { return step.letter < wanted; });
    return found != last(state) && found->letter == letter ? found->to : rest[state];
}

void Table::add(bool accepts, int rest_to, const std::vector<Step>& exceptions) {
    rest.push_back(rest_to);
    accepting.push_back(accepts ? 1 : 0);
    for (const Step& step : exceptions)
        if (step.to != rest_to) steps.push_back(step);
    begin.push_back(steps.size());
}

Table trim(const Table& table, Budget& budget) {
    budget.spend(table.size() + table.steps.size());
    if (table.size() == 0) return table;
    const std::vector<uint32_t> far = distances(table);
    Table out;
    if (far[0] == UINT32_MAX) return out;
    std::vector<int> number(table.size(), -1), order{0};
    number[0] = 0;
    std::vector<Step> steps;
    const auto mapped = [&](int to) {
        if (to < 0 || far[to] == UINT32_MAX) return -1;
        if (number[to] < 0) {
            number[to] = static_cast<int>(order.size());
            order.push_back(to);
        }
        return number[to];
    };
    for (size_t i = 0; i < order.size(); i++) {
        const int state = order[i];
        steps.clear();
        const int rest = mapped(table.rest[state]);
        for (const Step* step = table.first(state); step != table.last(state); step++)
            steps.push_back({step->letter, mapped(step->to)});
        out.add(table.accepting[state], rest, steps);
    }
    return out;
}

Table minimise(const Table& table, Budget& budget) {
    if (table.size() < 2) return table;
    return Refinement(table, budget).run();
}

std::vector<uint32_t> distances(const Table& table) {
    const Backward backward(table);
    std::vector<uint32_t> far(table.size(), UINT32_MAX);
    std::vector<int> reached;
    for (int state = 0; state < table.size(); state++) {
        if (!table.accepting[state]) continue;
        far[state] = 0;
        reached.push_back(state);
    }
    for (size_t i = 0; i < reached.size(); i++) {
        for (size_t at = backward.begin[reached[i]]; at < backward.begin[reached[i] + 1]; at++) {
            const int from = backward.from[at];
            if (far[from] != UINT32_MAX) continue;
            far[from] = far[reached[i]] + 1;
            reached.push_back(from);
        }
    }
    return far;
}

}  // namespace sglite
