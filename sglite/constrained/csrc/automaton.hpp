// Byte automata of regular subtrees: sets of characters, then states, then bytes of UTF-8 or of JSON strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ir.hpp"

namespace sglite {

struct Dfa {
    int start = 0;
    int states = 0;
    int classes = 0;             // of bytes that no state tells apart
    uint8_t class_of[256] = {};
    std::vector<int32_t> next;   // [states * classes], -1 is dead
    std::vector<uint8_t> accepting;  // [states]
    std::vector<uint32_t> distance;  // [states] fewest bytes to acceptance
};

// The smallest automaton of the texts of `expr` (TEXT CHARS SEQ ALT REPEAT AND NOT) as bytes of UTF-8, or, with `json`,
// of every JSON string that spells one of them, both quotes included. Every state reaches acceptance; states are
// numbered from the start, breadth first, so equal languages give equal automata.
//
// A JSON string spells a character as itself (from U+0020, but for the quote and the backslash), with its short escape
// (\" \\ \b \f \n \r \t), or, below U+0020, as \u00XX in either case. Where the language treats all characters
// alike, \/ and every \uXXXX are spellings too, a surrogate pair being one character.
//
// Throws Refusal when there is no text at all, when more than `max_states` states are needed on the way, or more than
// `max_work` elementary steps (ten to thirty nanoseconds and a few bytes each).
Dfa build_dfa(const Node& expr, bool json, size_t max_states, size_t max_work);

}  // namespace sglite
