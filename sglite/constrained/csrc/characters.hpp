// Regular expressions over classes of characters made into the smallest deterministic automaton.
#pragma once

#include "classes.hpp"
#include "table.hpp"

namespace sglite {

// Letters are classes. Without a state when there is no text.
Table character_table(const Expr& expr, Exprs& exprs, int classes, Budget& budget);

}  // namespace sglite
