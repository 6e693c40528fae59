// One unit: it compiles faster than its parts.

#include "problem.cpp"
#include "candidates.cpp"
#include "coarsen.cpp"
#include "anneal.cpp"
#include "search.cpp"
#include "module.cpp"
