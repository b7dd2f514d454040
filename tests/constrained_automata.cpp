// build_dfa for tests: a grammar of one rule in, the automaton as one array of integers out. One file is all there is
// to compile, since that takes a third of the time.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "automaton.cpp"
#include "characters.cpp"
#include "classes.cpp"
#include "ir.cpp"
#include "nfa.cpp"
#include "spelling.cpp"
#include "table.cpp"

// Returns how many integers there are, 0 after a refusal, whose reason is then in `reason`. Writes the first `room` of
// them: start, states, classes, the class of every byte, next, accepting, distance.
extern "C" long build(const int32_t* stream, size_t length, int json, size_t max_states, size_t max_work, int32_t* out,
                      size_t room, char* reason, size_t reason_room) {
    try {
        const sglite::Grammar grammar = sglite::read_grammar(stream, length);
        const sglite::Dfa dfa = sglite::build_dfa(*grammar.rules[0], json != 0, max_states, max_work);
        std::vector<int32_t> all{dfa.start, dfa.states, dfa.classes};
        const auto add = [&all](auto begin, auto end) { all.insert(all.end(), begin, end); };
        add(dfa.class_of, dfa.class_of + 256);
        add(dfa.next.begin(), dfa.next.end());
        add(dfa.accepting.begin(), dfa.accepting.end());
        add(dfa.distance.begin(), dfa.distance.end());
        std::copy_n(all.begin(), std::min(room, all.size()), out);
        return static_cast<long>(all.size());
    } catch (const sglite::Refusal& refusal) {
        std::snprintf(reason, reason_room, "%s", refusal.reason.c_str());
        return 0;
    }
}
