// What stops a simulated thread: a fault, a wait, a meeting with others. Each gives the word to the scheduler.
#pragma once

#include "fake_hopper_machine.h"

#include <utility>

namespace codetr {
namespace hopper {
namespace fake {

inline void toScheduler() {
    if (_setjmp(self().context) == 0) _longjmp(machine()->scheduler, 1);
}

// Ends the run, in which the first fault counts.
template <typename... Parts>
[[noreturn]] void fail(Parts const&... parts) {
    Machine& all = *machine();
    Thread const& thread = self();
    if (all.fault.empty())
        all.fault = join("cluster ", all.cluster, ", block ", thread.block->rank, ", thread ", thread.number, ": ", parts...);
    for (;;) toScheduler();
}

// Others may go on before in any case. `what` describes the wait where nothing can go on.
inline void waitUntil(std::function<bool()> over, std::function<std::string()> what) {
    self().wait = {std::move(over), std::move(what)};
    toScheduler();
    self().wait = {};
}

// Others may go on first.
inline void pause(int one_in) {
    if (draw(one_in) == 0) toScheduler();
}

inline void meet(Meeting& meeting, char const* what) {
    unsigned const number = meeting.number;
    if (++meeting.arrived == meeting.wanted) {
        meeting.arrived = 0;
        ++meeting.number;
    }
    waitUntil([&meeting, number] { return meeting.number != number; },
              [&meeting, what] { return join(what, ", to which ", meeting.arrived, " of ", meeting.wanted, " threads have come"); });
}

// With the other threads of the warp, which must all come to the same function; returns which of the two rows of values counts.
inline int meetWarp(char const* purpose, float value = 0) {
    Warp& warp = self().warp();
    int const row = static_cast<int>(warp.meeting.number & 1);
    if (warp.meeting.arrived == 0) warp.purpose = purpose;
    if (warp.purpose != purpose) fail("calls ", purpose, " where other threads of its warp call ", warp.purpose);
    warp.values[row][self().lane()] = value;
    meet(warp.meeting, purpose);
    return row;
}

}  // namespace fake
}  // namespace hopper
}  // namespace codetr
