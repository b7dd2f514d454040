#include "nfa.hpp"

#include <algorithm>
#include <climits>

namespace sglite {

int Nfa::state() {
    budget_.spend(4);
    return states_++;
}

void Nfa::free(int from, int to) {
    budget_.spend(4);
    frees_.push_back({from, 0, to});
}

void Nfa::letter(int from, int number, int to) {
    budget_.spend(4);
    reads_.push_back({from, ~number, to});
}

void Nfa::set(int from, const ClassSet& set, int to) {
    if (sets_.empty() || sets_.back().outside != set.outside || sets_.back().listed != set.listed) {
        budget_.spend(4 + set.listed.size());
        sets_.push_back(set);
    }
    budget_.spend(4);
    reads_.push_back({from, static_cast<int>(sets_.size()) - 1, to});
}

void Nfa::table(int from, const Table& table, int to) {
    const int base = states_;
    for (int i = 0; i < table.size(); i++) state();
    if (table.size() > 0) free(from, base);
    std::vector<Step> steps;
    for (int at = 0; at < table.size(); at++) {
        if (table.accepting[at]) free(base + at, to);
        steps.assign(table.first(at), table.last(at));
        if (table.rest[at] >= 0) {
            ClassSet others;
            others.outside = true;
            for (const Step& step : steps) others.listed.push_back(step.letter);
            set(base + at, others, base + table.rest[at]);
        }
        std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.to < b.to; });
        for (size_t i = 0; i < steps.size();) {
            ClassSet same;
            const int target = steps[i].to;
            for (; i < steps.size() && steps[i].to == target; i++) same.listed.push_back(steps[i].letter);
            if (target >= 0) set(base + at, same, base + target);
        }
    }
}

int Nfa::groups(int count) {
    groups_ += count;
    return groups_ - count;
}

void Nfa::copy(int first, int group, int rank) {
    budget_.spend(2 * (states_ - first));
    for (int state = first; state < states_; state++) ranks_.push_back({state, group + state - first, rank});
}

Nfa::Leaving::Leaving(std::vector<Edge> all, int states) : begin(states + 1, 0), edges(all.size()) {
    for (const Edge& edge : all) begin[edge.from + 1]++;
    for (size_t i = 1; i < begin.size(); i++) begin[i] += begin[i - 1];
    std::vector<size_t> at(begin.begin(), begin.end() - 1);
    for (const Edge& edge : all) edges[at[edge.from]++] = edge;
}

// All that is reached without reading, of it what reads or is the end, ascending.
void Nfa::close(std::vector<int>& states, const Leaving& frees, const Leaving& reads) {
    stamp_++;
    size_t kept = 0;
    std::vector<int> waiting;
    for (const int state : states) {
        if (stamps_[state] == stamp_) continue;
        stamps_[state] = stamp_;
        waiting.push_back(state);
    }
    states.clear();
    for (size_t i = 0; i < waiting.size(); i++) {
        const int state = waiting[i];
        if (state == end_ || reads.begin[state] != reads.begin[state + 1]) states.push_back(state);
        for (size_t at = frees.begin[state]; at < frees.begin[state + 1]; at++) {
            const int to = frees.edges[at].to;
            if (stamps_[to] == stamp_) continue;
            stamps_[to] = stamp_;
            waiting.push_back(to);
        }
        kept += 1 + frees.begin[state + 1] - frees.begin[state];
    }
    drop_dominated(states);
    budget_.spend(kept + 2 * states.size());
    std::sort(states.begin(), states.end());
}

void Nfa::gather(const int* states, size_t count, const Leaving& reads) {
    for (const int number : touched_) {
        by_class_[number].clear();
        is_touched_[number] = 0;
    }
    touched_.clear();
    outside_.clear();
    const auto touch = [&](int number) {
        if (is_touched_[number]) return;
        is_touched_[number] = 1;
        touched_.push_back(number);
    };
    for (size_t i = 0; i < count; i++) {
        for (size_t at = reads.begin[states[i]]; at < reads.begin[states[i] + 1]; at++) {
            const Edge& edge = reads.edges[at];
            budget_.spend(1);
            if (edge.set < 0) {
                touch(~edge.set);
                by_class_[~edge.set].push_back(edge.to);
                continue;
            }
            const ClassSet& set = sets_[edge.set];
            budget_.spend(set.listed.size());
            for (const int number : set.listed) {
                touch(number);
                if (!set.outside) by_class_[number].push_back(edge.to);
            }
            if (set.outside) outside_.push_back(edge);
        }
    }
    std::sort(touched_.begin(), touched_.end());
    budget_.spend(touched_.size() * (1 + outside_.size()));
    for (const int number : touched_)
        for (const Edge& edge : outside_)
            if (sets_[edge.set].has(number)) by_class_[number].push_back(edge.to);
}

void Nfa::drop_dominated(std::vector<int>& states) {
    if (states.size() < 2 || groups_ == 0) return;
    const auto each = [&](int state, auto see) {
        for (size_t at = ranks_of_->begin[state]; at < ranks_of_->begin[state + 1]; at++) see(ranks_of_->edges[at]);
    };
    size_t seen = 0;
    for (const int state : states)
        each(state, [&](const Edge& rank) { best_[rank.set] = std::min(best_[rank.set], rank.to), seen++; });
    budget_.spend(seen);
    const auto dominated = [&](int state) {
        bool found = false;
        each(state, [&](const Edge& rank) { found = found || best_[rank.set] < rank.to; });
        return found;
    };
    const auto kept = std::stable_partition(states.begin(), states.end(), [&](int s) { return !dominated(s); });
    for (const int state : states) each(state, [&](const Edge& rank) { best_[rank.set] = INT_MAX; });
    states.erase(kept, states.end());
}

int Nfa::number_of(std::vector<int>& states, const Leaving& frees, const Leaving& reads) {
    if (states.empty()) return -1;
    close(states, frees, reads);
    if (states.empty()) return -1;
    return sets_of_states_.add(states.data(), states.size());
}

Table Nfa::determinise(int start, int end) {
    end_ = end;
    const Leaving frees(std::move(frees_), states_), reads(std::move(reads_), states_);
    ranks_of_ = std::make_unique<Leaving>(std::move(ranks_), states_);
    best_.assign(groups_, INT_MAX);
    stamps_.assign(states_, 0);
    by_class_.resize(classes_);
    is_touched_.assign(classes_, 0);
    std::vector<int> targets{start};
    Table table;
    if (number_of(targets, frees, reads) < 0) return table;
    std::vector<Step> steps;
    for (int at = 0; at < sets_of_states_.size(); at++) {
        budget_.states(sets_of_states_.size());
        const size_t count = sets_of_states_.length(at);
        gather(sets_of_states_.data(at), count, reads);
        const bool accepts = std::binary_search(sets_of_states_.data(at), sets_of_states_.data(at) + count, end_);
        targets.clear();
        for (const Edge& edge : outside_) targets.push_back(edge.to);
        const int rest = number_of(targets, frees, reads);
        steps.clear();
        for (const int number : touched_) steps.push_back({number, number_of(by_class_[number], frees, reads)});
        table.add(accepts, rest, steps);
    }
    return trim(table, budget_);
}

}  // namespace sglite
