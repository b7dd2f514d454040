#include "classes.hpp"

#include <algorithm>

namespace sglite {
namespace {

constexpr int SURROGATES[2] = {0xD800, 0xDFFF};
constexpr int LAST_CODE = 0x10FFFF;
constexpr int MAX_NESTING = 1000;
constexpr int64_t MANY = int64_t{1} << 40;  // more than any budget allows

bool is_scalar(int code) { return code >= 0 && code <= LAST_CODE && (code < SURROGATES[0] || code > SURROGATES[1]); }

int64_t times(int64_t count, int64_t by) {
    if (count == NO_BOUND || by == NO_BOUND) return NO_BOUND;
    return by != 0 && count > MANY / by ? MANY : count * by;
}

}  // namespace

bool ClassSet::has(int number) const {
    return std::binary_search(listed.begin(), listed.end(), number) != outside;
}

Classes::Classes(const Node& expr, Budget& budget) {
    collect(expr, 0);
    std::sort(letters_.begin(), letters_.end());
    letters_.erase(std::unique(letters_.begin(), letters_.end()), letters_.end());
    for (const int code : letters_) sets_.emplace(std::vector<int>{code, code}, scalars({code, code}));
    divide(budget);
}

Classes::Ranges Classes::scalars(const std::vector<int>& ranges) {
    Ranges found;
    for (size_t i = 0; i + 1 < ranges.size(); i += 2) {
        const int low = std::max(ranges[i], 0), high = std::min(ranges[i + 1], LAST_CODE);
        if (low <= std::min(high, SURROGATES[0] - 1)) found.push_back({low, std::min(high, SURROGATES[0] - 1)});
        if (std::max(low, SURROGATES[1] + 1) <= high) found.push_back({std::max(low, SURROGATES[1] + 1), high});
    }
    return found;
}

void Classes::collect(const Node& node, int depth) {
    if (depth > MAX_NESTING) throw Refusal{"too complex: an expression is nested more than 1000 deep; flatten it"};
    if (node.op == CHARS) sets_.emplace(node.data, scalars(node.data));
    if (node.op == TEXT) letters_.insert(letters_.end(), node.data.begin(), node.data.end());
    for (const Node* kid : node.kids) collect(*kid, depth + 1);
}

// Every set in turn divides the classes that it holds a part of.
void Classes::divide(Budget& budget) {
    std::vector<int> starts{0, SURROGATES[1] + 1};
    for (const auto& set : sets_) {
        for (const auto& [low, high] : set.second) {
            starts.push_back(low);
            if (high != SURROGATES[0] - 1 && high != LAST_CODE) starts.push_back(high + 1);
        }
    }
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    for (size_t i = 0; i < starts.size(); i++) {
        const int next = i + 1 < starts.size() ? starts[i + 1] : LAST_CODE + 1;
        intervals.push_back({starts[i], starts[i] < SURROGATES[0] ? std::min(next, SURROGATES[0]) - 1 : next - 1, 0});
    }
    std::vector<int> split{-1};  // what a class becomes inside the set at hand, -1 while none of it was seen there
    std::vector<int> seen;
    for (const auto& set : sets_) {
        seen.clear();
        for (const auto& [low, high] : set.second) {
            auto at = std::lower_bound(starts.begin(), starts.end(), low) - starts.begin();
            for (; at < static_cast<long>(starts.size()) && starts[at] <= high; at++) {
                budget.spend(1);
                const int number = intervals[at].number;
                if (split[number] < 0) {
                    split[number] = static_cast<int>(split.size());
                    seen.push_back(number);
                    split.push_back(-1);
                }
                intervals[at].number = split[number];
            }
        }
        for (const int number : seen) split[number] = -1;
    }
    std::vector<int64_t> widths(split.size(), 0);
    for (const Interval& each : intervals) widths[each.number] += each.last - each.first + 1;
    const auto widest = std::max_element(widths.begin(), widths.end()) - widths.begin();
    std::vector<int> numbers(split.size(), -1);
    numbers[widest] = count++;
    for (Interval& each : intervals) {
        if (numbers[each.number] < 0) numbers[each.number] = count++;
        each.number = numbers[each.number];
    }
}

int Classes::of(int code) const {
    if (!is_scalar(code)) return -1;
    const auto after = std::upper_bound(intervals.begin(), intervals.end(), code,
                                        [](int wanted, const Interval& each) { return wanted < each.first; });
    return std::prev(after)->number;
}

ClassSet Classes::of_set(const std::vector<int>& ranges) const {
    std::vector<uint8_t> held(count, 0);
    for (const auto& [low, high] : scalars(ranges)) {
        auto at = std::lower_bound(intervals.begin(), intervals.end(), low,
                                   [](const Interval& each, int wanted) { return each.first < wanted; });
        for (; at != intervals.end() && at->first <= high; ++at) held[at->number] = 1;
    }
    ClassSet set;
    set.outside = held[0];
    for (int number = 1; number < count; number++)
        if (held[number] != held[0]) set.listed.push_back(number);
    return set;
}

Expr* Exprs::make(Expr::Kind kind) {
    budget_.spend(4);
    made_.emplace_back();
    made_.back().kind = kind;
    return &made_.back();
}

const Expr* Exprs::nothing() {
    Expr* made = make(Expr::ALT);
    made->nothing = true;
    return made;
}

const Expr* Exprs::empty() {
    Expr* made = make(Expr::WORD);
    made->nullable = true;
    return made;
}

const Expr* Exprs::word(const std::vector<int>& codes) {
    Expr* made = make(Expr::WORD);
    made->nullable = codes.empty();
    for (const int code : codes) {
        made->word.push_back(classes_.of(code));
        made->nothing = made->nothing || made->word.back() < 0;
    }
    budget_.spend(codes.size());
    return made;
}

const Expr* Exprs::read(const Node& node) {
    std::vector<const Expr*> kids;
    for (const Node* kid : node.kids) kids.push_back(read(*kid));
    switch (node.op) {
        case TEXT: return word(node.data);
        case CHARS: {
            Expr* made = make(Expr::SET);
            made->set = classes_.of_set(node.data);
            made->nothing = !made->set.outside && made->set.listed.empty();
            budget_.spend(classes_.count + node.data.size());
            return made;
        }
        case SEQ: return seq(kids);
        case ALT: return alt(std::move(kids));
        case REPEAT: return repeat(kids.at(0), node.a, node.b < 0 ? NO_BOUND : node.b);
        case AND: return algebra(Expr::AND, std::move(kids));
        case NOT: return algebra(Expr::NOT, std::move(kids));
        default: throw Refusal{"internal: operation " + std::to_string(node.op) + " is not regular"};
    }
}

const Expr* Exprs::seq(const std::vector<const Expr*>& kids) {
    Expr* made = make(Expr::SEQ);
    made->nullable = true;
    for (const Expr* kid : kids) {
        if (kid->nothing) return nothing();
        made->nullable = made->nullable && kid->nullable;
        made->algebra = made->algebra || kid->algebra;
        if (kid->kind == Expr::SEQ) {
            made->kids.insert(made->kids.end(), kid->kids.begin(), kid->kids.end());
        } else {
            made->kids.push_back(kid);
        }
    }
    budget_.spend(made->kids.size());
    return made->kids.size() == 1 ? made->kids[0] : made;
}

const Expr* Exprs::alt(std::vector<const Expr*> kids) {
    Expr* made = make(Expr::ALT);
    for (const Expr* kid : kids) {
        if (kid->nothing) continue;
        made->nullable = made->nullable || kid->nullable;
        made->algebra = made->algebra || kid->algebra;
        made->kids.push_back(kid);
    }
    made->nothing = made->kids.empty();
    budget_.spend(kids.size());
    return made->kids.size() == 1 ? made->kids[0] : made;
}

// Items that may be empty are counted without the empty text, and counts of counts become one where no number between
// is left out, so that few ways lead to the same text.
const Expr* Exprs::repeat(const Expr* item, int64_t low, int64_t high) {
    if (high < low) return nothing();
    if (item->nothing && low > 0) return nothing();
    if (item->nothing || high == 0 || (item->kind == Expr::WORD && item->word.empty())) return empty();
    const bool may_be_empty = low == 0 || item->nullable;
    if (item->nullable) {
        item = not_empty(item);
        low = 0;
    }
    if (item->kind == Expr::REPEAT) {
        const int64_t least = item->low, most = item->high;
        const bool gapless = low == high || most == NO_BOUND ? low > 0 || least <= 1
                             : low == 0                      ? least <= 1
                                                             : times(low, most - least) + 1 >= least;
        if (gapless) {
            low = times(low, least);
            high = times(high, most);
            item = item->kids[0];
        }
    }
    if (low == 1 && high == 1) return item;
    Expr* made = make(Expr::REPEAT);
    made->kids = {item};
    made->low = low;
    made->high = high;
    made->nullable = may_be_empty;
    made->algebra = item->algebra;
    return made;
}

// The same but for the empty text, where that is easily said; otherwise the same.
const Expr* Exprs::not_empty(const Expr* item) {
    if (item->kind == Expr::REPEAT && item->low == 0 && !item->kids[0]->nullable)
        return repeat(item->kids[0], 1, item->high);
    if (item->kind == Expr::ALT) {
        std::vector<const Expr*> kids;
        for (const Expr* kid : item->kids) {
            if (kid->kind == Expr::WORD && kid->word.empty()) continue;
            kids.push_back(kid->nullable ? not_empty(kid) : kid);
        }
        return alt(std::move(kids));
    }
    return item;
}

const Expr* Exprs::algebra(Expr::Kind kind, std::vector<const Expr*> kids) {
    Expr* made = make(kind);
    made->algebra = true;
    made->nullable = kind == Expr::AND;
    for (const Expr* kid : kids) {
        if (kind == Expr::NOT) made->nullable = !kid->nullable;
        if (kind == Expr::AND) made->nullable = made->nullable && kid->nullable;
        if (kind == Expr::AND && kid->nothing) made->nothing = true;
    }
    made->kids = std::move(kids);
    return made;
}

}  // namespace sglite
