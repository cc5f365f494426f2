/* SPDX-License-Identifier: BSD-3-Clause */
/* A guest that is saved to a file and restored from it (docs/handover.md, "Files"), as a model for
 * SPIN. scripts/model.sh runs it.
 *
 * One source, one file, two restorers on hosts of their own. The file and the journals survive, memory
 * and the file's lock do not: any process crashes and returns between any two steps, in particular
 * between the two halves of write-then-act. A write may fail and be on disk or not. The file carries
 * its own records: COMPLETE, CLAIMED by somebody, GIVEN BACK, DISCARDED; they are changed under its lock.
 *
 * Bounds: CRASHES, FAILS (a write, a load), TRIES (claims in all).
 *
 * MUTANT=n breaks one rule; each must be caught:
 *   1 a claim is looked for and written without the lock
 *   2 the source resumes although the file is complete and not discarded
 *   3 a discard does not look for a claim
 *   4 a restorer runs before RUNNING is journalled
 *   5 a claim is given back before REFUSED is on record
 *   6 COMPLETE is written before the data is synced
 *   7 the claim of a holder that is gone is taken over without its REFUSED on record
 *   8 a source that returns with OFFERED on record boots the guest without asking
 *   9 a failed restore keeps its claim for good
 *
 * Properties, by the letter at their assertions:
 *   A never two running                                            1 2 3 5
 *   B the guest of the file begins to run at most once             4 7 8
 *   C only a whole file is loaded                                  6
 *   D what was saved, was never run and is not claimed can be restored; a refused claim is none  9 */

#ifndef MUTANT
#define MUTANT 0
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef FAILS
#define FAILS 1
#endif
#ifndef TRIES
#define TRIES 3
#endif

#define SOURCE  3
#define NOBODY  0
#define RUNS    (s_runs + r_runs[1] + r_runs[2])

mtype = { NONE, OFFERED, SAVED, RESUMED, OPENED, READY, GRANTED, RUNNING, REFUSED };

/* The file. */
bit f_data, f_complete, f_void;
byte f_claim = NOBODY; /* who */
byte f_epoch;          /* number of the last claim */
byte f_lock = NOBODY;

/* The source. */
bit s_alive = 1, s_runs = 1;
mtype s_disk = NONE;

/* The restorers, by number. */
bit r_alive[3], r_runs[3];
mtype r_disk[3] = NONE;
byte r_epoch[3]; /* of r_disk */

byte crashes = CRASHES, fails = FAILS, tries = TRIES;
bit ran;   /* the guest of the file has begun to run somewhere else than at the source */

inline run_source()
{
    assert(!r_runs[1] && !r_runs[2]); /* A */
    assert(!ran);                     /* B */
    s_runs = 1
}

inline unlock(who)
{
    if
    :: f_lock == who -> f_lock = NOBODY
    :: else -> skip
    fi
}

active proctype source()
{
    atomic { s_disk = OFFERED };
    if
    :: atomic { s_alive -> s_runs = 0; f_lock = SOURCE } /* stopped, and the bulk is written */
    :: atomic { !s_alive -> goto back }
    fi;
    if
#if MUTANT == 6
    :: atomic { s_alive -> f_complete = 1; goto complete }
#endif
    :: atomic { s_alive -> f_data = 1 } /* synced */
    :: atomic { s_alive && fails -> fails--; f_lock = NOBODY; f_void = 1; s_disk = RESUMED; run_source(); goto end_away }
    :: atomic { !s_alive -> goto back }
    fi;
    if
    :: atomic { s_alive -> f_complete = 1 }
    :: atomic { s_alive && fails -> fails--;
        if
        :: f_complete = 1
        :: skip
        fi;
        goto discard }
    :: atomic { !s_alive -> goto back }
    fi;
complete:
    if
    :: atomic { s_alive -> s_disk = SAVED; f_data = 1 }
    :: atomic { s_alive && fails -> fails--;
        if
        :: s_disk = SAVED
        :: skip
        fi;
#if MUTANT == 2
        unlock(SOURCE); run_source(); goto end_away
#else
        goto discard
#endif
        }
    :: atomic { !s_alive -> goto back }
    fi;
    if
    :: atomic { s_alive -> unlock(SOURCE) }
    :: atomic { !s_alive -> goto back }
    fi;
end_saved:
    if
    :: atomic { s_alive && f_lock == NOBODY -> f_lock = SOURCE; goto discard } /* an operator wants to go on */
    :: atomic { !s_alive -> goto back }
    fi;
discard:
    if
    :: atomic { s_alive &&
#if MUTANT != 3
        f_claim == NOBODY &&
#endif
        1 -> f_void = 1 }
    :: atomic { s_alive && f_claim != NOBODY -> unlock(SOURCE); goto end_away } /* too late: paused for good */
    :: atomic { s_alive && fails -> fails--;
        if
        :: f_claim == NOBODY -> f_void = 1
        :: skip
        fi;
        unlock(SOURCE); goto end_saved } /* paused: it is not known */
    :: atomic { !s_alive -> goto back }
    fi;
    if
    :: atomic { s_alive -> s_disk = RESUMED }
    :: atomic { s_alive && fails -> fails-- } /* the file is void whatever the journal says */
    :: atomic { !s_alive -> goto back }
    fi;
    if
    :: atomic { s_alive -> unlock(SOURCE); run_source() }
    :: atomic { !s_alive -> goto back }
    fi;
    goto end_away;
back:
    /* Without memory. It boots the guest afresh only when nothing else can run it. */
    if
#if MUTANT == 8
    :: atomic { s_disk == OFFERED -> s_alive = 1; run_source() }
#endif
    :: atomic { s_disk == RESUMED -> s_alive = 1; run_source() }
    :: else -> skip
    fi;
end_away:
    skip
}

/* May the claim on the file be taken? */
#define OLD_IS_VOID (f_claim != NOBODY && r_disk[f_claim] == REFUSED && r_epoch[f_claim] == f_epoch)
#define OLD_IS_GONE (f_claim != NOBODY && f_claim != SOURCE && !r_alive[f_claim])
#if MUTANT == 7
#define FREE (f_claim == NOBODY || OLD_IS_VOID || OLD_IS_GONE)
#else
#define FREE (f_claim == NOBODY || OLD_IS_VOID)
#endif

proctype restorer(byte me)
{
    byte epoch;

end_idle:
    do
#if MUTANT == 1
    :: atomic { tries && f_complete && !f_void && FREE -> tries--; r_alive[me] = 1 };
#else
    :: atomic { tries && f_lock == NOBODY && f_complete && !f_void && FREE -> tries--;
        r_alive[me] = 1; f_lock = me };
#endif
        if
        :: atomic { r_alive[me] -> f_epoch++; epoch = f_epoch; f_claim = me; r_disk[me] = OPENED;
            r_epoch[me] = epoch }
        :: atomic { r_alive[me] && fails -> fails--; /* it is not known whether it is claimed */
            if
            :: f_epoch++; epoch = f_epoch; f_claim = me; r_disk[me] = OPENED; r_epoch[me] = epoch
            :: unlock(me); r_alive[me] = 0; goto end_idle
            fi;
            goto refuse }
        :: atomic { !r_alive[me] -> goto back }
        fi;
        if
        :: atomic { r_alive[me] -> unlock(me); assert(f_data) /* C */ }
        :: atomic { r_alive[me] && fails -> fails--; goto refuse } /* it cannot be loaded */
        :: atomic { !r_alive[me] -> goto back }
        fi;
        if
        :: atomic { r_alive[me] -> r_disk[me] = READY }
        :: atomic { r_alive[me] && fails -> fails--; goto refuse }
        :: atomic { !r_alive[me] -> goto back }
        fi;
        if
        :: atomic { r_alive[me] -> r_disk[me] = GRANTED }
        :: atomic { !r_alive[me] -> goto back }
        fi;
granted:
#if MUTANT == 4
        atomic { r_alive[me] -> assert(RUNS == 0); assert(!ran); r_runs[me] = 1; ran = 1 };
#endif
        if
        :: atomic { r_alive[me] -> r_disk[me] = RUNNING }
        :: atomic { r_alive[me] && fails -> fails--; goto refuse } /* cannot be prepared */
        :: atomic { !r_alive[me] -> goto back }
        fi;
        if
        :: atomic { r_alive[me] ->
#if MUTANT != 4
            assert(RUNS == 0); /* A */
            assert(!ran);      /* B */
            r_runs[me] = 1; ran = 1;
#endif
            goto end_runs }
        :: atomic { !r_alive[me] -> goto back }
        fi;
refuse:
#if MUTANT == 5
        atomic { r_alive[me] -> f_claim = NOBODY };
#endif
        if
        :: atomic { r_alive[me] -> r_disk[me] = REFUSED }
        :: atomic { r_alive[me] && fails && r_disk[me] == GRANTED -> fails--; goto granted } /* stays, tries again */
        :: atomic { !r_alive[me] -> goto back }
        fi;
        if
        :: atomic { r_alive[me] && (f_lock == NOBODY || f_lock == me) ->
#if MUTANT != 9
            if
            :: f_claim == me && f_epoch == epoch -> f_claim = NOBODY
            :: else -> skip
            fi;
#endif
            unlock(me); r_alive[me] = 0 }
        :: atomic { !r_alive[me] -> goto back }
        fi;
#if MUTANT == 9
        atomic { r_disk[me] = NONE };
#endif
        goto end_idle;
back:
        /* Its journal speaks for it: RUNNING stands, everything before is refused. */
        if
        :: atomic { r_disk[me] == RUNNING -> goto end_runs }
        :: atomic { r_disk[me] == OPENED || r_disk[me] == READY || r_disk[me] == GRANTED -> r_disk[me] = REFUSED }
        :: else -> skip
        fi
    od;
end_runs:
    skip
}

active proctype fate()
{
    do
    :: atomic { crashes && s_alive -> crashes--; s_alive = 0; s_runs = 0; unlock(SOURCE) }
    :: atomic { crashes && r_alive[1] -> crashes--; r_alive[1] = 0; r_runs[1] = 0; unlock(1) }
    :: atomic { crashes && r_alive[2] -> crashes--; r_alive[2] = 0; r_runs[2] = 0; unlock(2) }
    :: timeout -> break
    od;
    /* Nothing moves any more. */
    assert(RUNS <= 1); /* A */
    /* D: nobody stands in the way of a guest that is still in the file. */
    assert(!f_complete || f_void || ran || FREE || r_disk[f_claim] == RUNNING)
}

init
{
    atomic { run restorer(1); run restorer(2) }
}
