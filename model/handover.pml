/* SPDX-License-Identifier: BSD-3-Clause */
/* The handover of a running guest (docs/handover.md), as a model for SPIN. scripts/model.sh runs it.
 *
 * Two sides, each with a journal that survives and a memory that does not; messages are lost (also
 * when a queue is full), doubled, delayed and reordered; either side crashes and returns between any
 * two steps, in particular between the two halves of journal-then-act; a write may fail and be on
 * disk or not; an operator may vouch that the source is fenced, while it is in fact down.
 *
 * At any time the faults may end (calm). Then dead sides return, and when nothing moves any more
 * the state must be one that has a name.
 *
 * Bounds: QUEUE messages each way, CRASHES, FAILS (journal, load, prepare), LINKS (a link lost without
 * a crash), ABORTS (a user cancels), EPOCHS (attempts), RETRIES each side in the calm.
 *
 * MUTANT=n breaks one rule; each must be caught:
 *   1 the grant is sent before GRANT-SENT is journalled
 *   2 the destination runs before RUNNING is journalled
 *   3 the destination says REFUSED before it is journalled
 *   4 the source resumes when the link is lost after the grant
 *   5 the destination runs when it is READY, without a grant
 *   6 a source that returns boots the guest without asking
 *   7 the source gives up its memory when the grant is sent
 *   8 an unwound source grants when READY comes after all
 *   9 the destination takes a grant of any attempt
 *  10 the source never repeats the grant
 *  11 an unwinding after SEAL is closed without the destination's refusal
 *  12 a destination that cannot start refuses although the source has lost its memory
 *  13 a source that returns says nothing about what it waits for
 *  14 SEAL after loading is forgotten
 *
 * Properties, by the letter at their assertions:
 *   A never two running                                                           4 6 11
 *   B the source runs again only if the grant was never sent or is refused on record 1 3
 *   C the destination runs only with a grant of this attempt, or fenced             5 9
 *   D without faults exactly one runs in the end, at the destination                14
 *   E nothing is lost in silence: memory is given up only where another copy exists,
 *     and whoever stands still says why                                       7 10 12 13
 *   F the destination never runs a state that the source has left behind, and what ran at the
 *     destination never runs at the source again                                    2 8 */

#ifndef MUTANT
#define MUTANT 0
#endif
#ifndef QUEUE
#define QUEUE 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef FAILS
#define FAILS 1
#endif
#ifndef LINKS
#define LINKS 1
#endif
#ifndef ABORTS
#define ABORTS 0
#endif
#ifndef EPOCHS
#define EPOCHS 1
#endif
#ifndef LOSS
#define LOSS 1
#endif
#define RETRIES 4

/* Records. */
#define NONE       0
#define OFFERED    1
#define GRANT_SENT 2
#define RELEASED   3
#define ABORTED    5
#define RESUMED    6
#define READY      7
#define GRANTED    8
#define FENCED     9
#define RUNNING    10
#define REFUSED    11

/* States beyond those that are named by their record. */
#define IDLE     0
#define STOPPED  20
#define ABORTING 21
#define LISTEN   22
#define LOADING  23

/* Messages. */
#define M_OFFER    1
#define M_SEAL     2
#define M_READY    3
#define M_GRANT    4
#define M_RUNNING  5
#define M_REFUSED  6 /* x: it is on record */
#define M_ABORT    7
#define M_RELEASED 8
#define M_QUERY    9
#define M_OUTCOME  10 /* towards the destination only, while the grant is out */

/* Outcomes. */
#define O_RUNS_S    1
#define O_RUNS_D    2
#define O_UNDECIDED 3
#define O_PAUSED_D  4
#define O_ONLY_D    5
#define O_REFUSED   6
#define O_DIED_S    7
#define O_DIED_D    8

chan s2d = [QUEUE] of { byte, byte, bit }; /* kind, epoch, sender has memory */
chan d2s = [QUEUE] of { byte, byte, bit };

bit s_alive = 1, s_mem = 1, s_runs = 1, s_dur, s_lost, s_abort, s_back;
byte s_st = IDLE, s_disk = NONE, s_pend = NONE, s_ep = 1, s_out;

bit d_alive = 1, d_mem, d_runs, d_dur, d_lost, d_sealed, d_loaded, d_data, d_work, d_prepared, d_failed;
byte d_st = LISTEN, d_disk = NONE, d_disk_ep, d_pend = NONE, d_ep, d_out;

/* What only the observer knows. */
bit granted;  /* a grant of this attempt was sent */
bit fenced;   /* an operator vouched */
bit stale;    /* the source has run since the image was taken */
bit ran;      /* the guest has run at the destination */
bit excused;  /* the source died while the destination handed back: nobody's mistake */
bit asked;    /* a user asked to cancel */
#ifdef NO_FAULTS
bit calm = 1;
#else
bit calm;
#endif
byte crashes = CRASHES, fails = FAILS, links = LINKS, aborts = ABORTS;
byte s_retry = RETRIES, d_retry = RETRIES;

inline to_d(k)
{
    if
    :: nfull(s2d) -> s2d!k, s_ep, s_mem
    :: full(s2d) -> skip
    fi
}

inline to_s(k, x)
{
    if
    :: nfull(d2s) -> d2s!k, d_ep, x
    :: full(d2s) -> skip
    fi
}

inline grant()
{
    granted = 1;
    to_d(M_GRANT)
}

/* The source lets the guest run, or boots it afresh. */
inline run_source()
{
    if
    :: !s_runs ->
        assert(!granted || (d_disk == REFUSED && d_disk_ep == s_ep)); /* B */
        assert(!ran || fenced);                                       /* F */
        stale = (s_st != OFFERED);
        s_runs = 1;
        assert(!d_runs)                                               /* A */
    :: else -> skip
    fi
}

inline run_destination()
{
    assert(granted || fenced);  /* C */
    assert(!stale || fenced);   /* F */
    assert(d_data);
    d_runs = 1;
    ran = 1;
    assert(!s_runs)             /* A */
}

inline release_destination()
{
    assert(!d_mem || s_mem || stale || s_disk == ABORTED || asked || excused); /* E */
    d_mem = 0; d_data = 0; d_work = 0; d_runs = 0
}

/* ---------------------------------------------------------------- source */

inline s_after()
{
    s_dur = 0;
    if
    :: s_pend == OFFERED -> s_st = OFFERED; to_d(M_OFFER);
        if
        :: s_abort -> s_pend = RESUMED /* cancelled meanwhile: goes on below */
        :: else -> s_pend = NONE
        fi
    :: s_pend == GRANT_SENT -> s_st = GRANT_SENT; s_pend = NONE;
#if MUTANT != 1
        grant();
#endif
#if MUTANT == 7
        s_mem = 0
#endif
        skip
    :: s_pend == ABORTED -> run_source(); s_pend = NONE;
#if MUTANT == 11
        s_st = RESUMED; s_disk = RESUMED;
#else
        s_st = ABORTED;
#endif
        s_out = O_RUNS_S; to_d(M_ABORT)
    :: s_pend == RESUMED -> s_pend = NONE;
        if
        :: s_mem -> run_source(); s_out = O_RUNS_S
        :: else -> s_out = O_DIED_S
        fi;
        s_st = RESUMED
    :: s_pend == RELEASED -> s_pend = NONE;
        assert(d_mem || d_disk == RUNNING); /* E */
        s_st = RELEASED; s_mem = 0; to_d(M_RELEASED)
    fi
}

/* The write failed. Before the grant nothing keeps the source from going on. */
inline s_failed()
{
    s_dur = 0;
    if
    :: s_pend == OFFERED -> s_pend = NONE; s_st = RESUMED; s_out = O_RUNS_S
    :: s_pend == GRANT_SENT -> s_st = ABORTING; s_pend = ABORTED
    :: s_pend == ABORTED && s_st == STOPPED -> s_pend = NONE; run_source(); s_st = ABORTED;
        s_out = O_RUNS_S; to_d(M_ABORT)
    :: s_pend == ABORTED && s_st == ABORTING -> s_pend = NONE; s_out = O_UNDECIDED; to_d(M_ABORT)
    :: s_pend == RESUMED && s_mem && s_st != ABORTED -> s_pend = NONE; run_source();
        s_st = RESUMED; s_out = O_RUNS_S
    :: s_pend == RESUMED && (!s_mem || s_st == ABORTED) -> s_pend = NONE
    :: s_pend == RELEASED -> s_pend = NONE; s_out = O_UNDECIDED;
        if
        :: s_st == STOPPED || s_st == ABORTING -> s_st = GRANT_SENT
        :: else -> skip
        fi
    fi
}

inline s_got(k, x)
{
    if
    :: k == M_READY && s_st == STOPPED && x -> s_pend = GRANT_SENT;
#if MUTANT == 1
        grant()
#endif
        skip
    :: k == M_READY && s_st == GRANT_SENT ->
#if MUTANT == 10
        skip
#else
        if
        :: s_abort && s_mem -> to_d(M_ABORT)
        :: else -> grant()
        fi
#endif
    :: k == M_READY && (s_st == ABORTED || s_st == RESUMED) ->
#if MUTANT == 8
        if
        :: s_mem -> s_pend = GRANT_SENT; s_runs = 0
        :: else -> to_d(M_ABORT)
        fi
#else
        to_d(M_ABORT)
#endif
    :: k == M_READY && s_st == OFFERED && !s_mem -> s_out = O_ONLY_D
    :: k == M_REFUSED && (s_st == OFFERED || s_st == STOPPED) ->
        if
        :: x || (s_st == OFFERED && s_mem) -> s_pend = RESUMED
        :: !x && s_st == STOPPED -> s_pend = ABORTED
        :: else -> skip
        fi
    :: k == M_REFUSED && (s_st == GRANT_SENT || s_st == ABORTING || s_st == ABORTED) ->
        if
#if MUTANT == 3
        :: s_pend = RESUMED
#else
        :: x -> s_pend = RESUMED
        :: else -> skip
#endif
        fi
    :: k == M_RUNNING && s_st != RESUMED && s_st != RELEASED && s_st != IDLE ->
        if
        :: s_runs -> skip
        :: !s_runs && (x || !s_mem || s_st != GRANT_SENT) -> s_pend = RELEASED;
            s_out = (x -> O_RUNS_D : O_DIED_D)
        :: !s_runs && !x && s_mem && s_st == GRANT_SENT -> s_out = O_DIED_D
        fi
    :: k == M_RUNNING && s_st == RELEASED -> to_d(M_RELEASED)
    :: k == M_QUERY && s_st == GRANT_SENT -> to_d(M_OUTCOME)
    :: k == M_QUERY && (s_st == ABORTED || s_st == RESUMED) -> to_d(M_ABORT)
    :: else -> skip
    fi
}

/* Says again what the other side may have missed. */
inline s_again()
{
    if
    :: s_st == OFFERED && s_mem -> to_d(M_OFFER)
    :: s_st == OFFERED && !s_mem && s_abort -> to_d(M_ABORT)
    :: s_st == OFFERED && !s_mem && !s_abort -> to_d(M_QUERY)
    :: s_st == STOPPED -> to_d(M_SEAL)
    :: s_st == ABORTING -> s_pend = ABORTED
    :: s_st == GRANT_SENT && s_abort && s_mem -> to_d(M_ABORT)
    :: s_st == GRANT_SENT && !(s_abort && s_mem) ->
#if MUTANT == 10
        skip
#else
        grant()
#endif
    :: s_st == ABORTED -> to_d(M_ABORT)
    :: else -> skip
    fi
}

inline s_link_lost()
{
    if
    :: s_pend == OFFERED -> s_abort = 1
    :: s_pend != NONE && s_pend != OFFERED -> skip
    :: s_pend == NONE && s_st == OFFERED && s_mem -> s_pend = RESUMED
    :: s_pend == NONE && s_st == STOPPED -> s_pend = ABORTED
    :: s_pend == NONE && s_st == GRANT_SENT -> s_out = (s_out == O_DIED_D -> s_out : O_UNDECIDED);
#if MUTANT == 4
        if
        :: s_mem -> s_runs = 1; assert(!d_runs); s_st = RESUMED
        :: else -> skip
        fi
#endif
        skip
    :: else -> skip
    fi
}

inline s_cancel()
{
    s_abort = 1; asked = 1;
    if
    :: s_pend != NONE -> skip
    :: s_pend == NONE && s_st == OFFERED && s_mem -> s_pend = RESUMED
    :: s_pend == NONE && s_st == STOPPED -> s_pend = ABORTED
    :: s_pend == NONE && ((s_st == OFFERED && !s_mem) || (s_st == GRANT_SENT && s_mem)) -> to_d(M_ABORT)
    :: else -> skip
    fi
}

inline s_return()
{
    s_alive = 1; s_back = 1; s_st = s_disk;
    if
#if MUTANT == 13
    :: s_disk == OFFERED || s_disk == GRANT_SENT || s_disk == ABORTED -> skip
#else
    :: s_disk == OFFERED || s_disk == GRANT_SENT || s_disk == ABORTED -> s_out = O_UNDECIDED
#endif
    :: s_disk == RELEASED -> s_out = O_RUNS_D
    :: s_disk == RESUMED || s_disk == NONE -> s_out = O_DIED_S
    fi
}

active proctype source()
{
    byte k, e;
    bit x;

end:
    do
    :: atomic { s_alive && s_pend == NONE && s_st == IDLE && s_mem -> s_pend = OFFERED }
    :: atomic { s_alive && s_pend != NONE && !s_dur -> s_disk = s_pend; s_dur = 1 }
    :: atomic { s_alive && s_pend != NONE && s_dur -> s_after(); }
    :: atomic { s_alive && s_pend != NONE && !s_dur && fails && !calm ->
        fails--;
        if
        :: s_disk = s_pend
        :: skip
        fi;
        s_failed(); }
    :: atomic { s_alive && s_pend == NONE && s_st == OFFERED && s_mem &&
                (!calm || (d_alive && d_st == LOADING && d_ep == s_ep)) ->
        s_runs = 0; stale = 0; s_st = STOPPED;
        d_data = (d_alive && d_st == LOADING && d_ep == s_ep);
        to_d(M_SEAL); }
    :: atomic { nempty(d2s) && (!calm || (s_alive && s_pend == NONE)) -> d2s?k, e, x;
        if
        :: s_alive && s_pend == NONE && e == s_ep -> s_got(k, x);
        :: else -> skip /* nobody listens, or it is of another attempt */
        fi;
        k = 0; e = 0; x = 0; }
    :: atomic { LOSS && !calm && nempty(d2s) && s_alive && s_pend == NONE -> d2s?<k, e, x>; /* doubled */
        if
        :: e == s_ep -> s_got(k, x);
        :: else -> skip
        fi;
        k = 0; e = 0; x = 0; }
    :: atomic { LOSS && !calm && nempty(d2s) -> d2s?k, e, x; k = 0; e = 0; x = 0 } /* lost */
    :: atomic { LOSS && !calm && len(d2s) > 1 -> d2s?k, e, x; d2s!k, e, x; k = 0; e = 0; x = 0 }
    :: atomic { s_alive && s_pend == NONE && (!calm && LOSS || calm && timeout && s_retry) ->
        if
        :: calm -> s_retry--
        :: else -> skip
        fi;
        s_again(); }
    :: atomic { s_alive && s_lost -> s_lost = 0; s_link_lost(); }
    :: atomic { s_alive && links && !calm -> links--; s_link_lost(); }
    :: atomic { s_alive && aborts && !calm -> aborts--; s_cancel(); }
    :: atomic { s_alive && s_back && !s_runs && !calm && s_pend == NONE &&
#if MUTANT == 6
                s_st == OFFERED
#else
                s_st == RESUMED
#endif
                -> run_source(); } /* boots afresh */
    :: atomic { s_alive && s_pend == NONE && s_st == RESUMED && s_disk == RESUMED && s_mem && s_ep < EPOCHS &&
                !calm -> /* another attempt */
        s_ep++; s_st = IDLE; s_abort = 0; s_out = 0; granted = 0; }
    od
}

/* ----------------------------------------------------------- destination */

inline d_after()
{
    d_dur = 0;
    if
    :: d_pend == READY -> d_pend = NONE; d_mem = 1; d_st = READY; to_s(M_READY, 1);
#if MUTANT == 5
        run_destination()
#endif
        skip
    :: d_pend == GRANTED || d_pend == FENCED -> d_st = d_pend; d_pend = NONE; d_work = 1;
#if MUTANT == 2
        run_destination()
#endif
        skip
    :: d_pend == RUNNING -> d_pend = NONE; d_st = RUNNING; d_out = O_RUNS_D; to_s(M_RUNNING, 1);
#if MUTANT != 2
        run_destination()
#endif
        skip
    :: d_pend == REFUSED -> d_pend = NONE; d_st = REFUSED; d_out = O_REFUSED;
        release_destination();
#if MUTANT != 3
        to_s(M_REFUSED, 1)
#endif
        skip
    fi
}

inline d_not_written()
{
    d_dur = 0;
    if
    :: d_pend == READY -> d_pend = REFUSED
    :: d_pend == REFUSED && d_st == LOADING -> d_pend = NONE; d_st = REFUSED; d_out = O_REFUSED;
        release_destination(); to_s(M_REFUSED, 0)
    :: d_pend == REFUSED && d_st == LISTEN -> d_pend = NONE
    :: d_pend == REFUSED && d_st == REFUSED -> d_pend = NONE
    :: d_pend == REFUSED && (d_st == GRANTED || d_st == FENCED) -> d_pend = NONE; d_out = O_PAUSED_D
    :: d_pend == REFUSED && d_st == READY -> d_pend = NONE; d_out = O_UNDECIDED
    :: d_pend == GRANTED || d_pend == FENCED -> d_pend = NONE; d_out = O_UNDECIDED
    :: d_pend == RUNNING -> d_pend = NONE; d_out = O_PAUSED_D
    fi
}

/* Begins to refuse. */
inline d_refuse()
{
    d_pend = REFUSED;
#if MUTANT == 3
    to_s(M_REFUSED, 0)
#endif
    skip
}

inline d_adopt(e)
{
    d_ep = e; d_st = LISTEN; d_mem = 0; d_data = 0; d_sealed = 0; d_loaded = 0; d_work = 0;
    d_prepared = 0; d_failed = 0; d_out = 0
}

inline d_got(k, x)
{
    if
    :: d_st == LISTEN && k == M_OFFER -> d_st = LOADING
    :: d_st == LISTEN && k != M_OFFER && k != M_RELEASED && k != M_OUTCOME -> d_refuse()
    :: d_st == LOADING && k == M_SEAL -> d_sealed = 1;
        if
#if MUTANT != 14
        :: d_loaded -> d_pend = READY
#endif
        :: else -> skip
        fi
    :: d_st == LOADING && (k == M_ABORT || (k == M_QUERY && !d_sealed)) -> d_refuse()
    :: d_st == READY && d_mem && k == M_GRANT -> d_pend = GRANTED
    :: d_st == READY && d_mem && (k == M_SEAL || k == M_OFFER) -> to_s(M_READY, 1)
    :: d_st == READY && d_mem && k == M_QUERY -> to_s(M_READY, 1);
        d_out = (x -> d_out : O_ONLY_D)
    :: d_st == READY && (k == M_ABORT || (!d_mem && (k == M_GRANT || k == M_QUERY))) -> d_refuse()
    :: (d_st == GRANTED || d_st == FENCED) && !d_mem && k == M_GRANT -> d_refuse()
    :: d_st == GRANTED && d_mem && k == M_OUTCOME && d_failed ->
        if
#if MUTANT == 12
        :: d_refuse()
#else
        :: x -> d_refuse()
        :: else -> skip
#endif
        fi
    :: d_st == GRANTED && k == M_ABORT && x -> d_refuse()
    :: d_st == FENCED && k == M_ABORT -> d_refuse()
    :: d_st == RUNNING && k != M_RELEASED && k != M_OUTCOME -> to_s(M_RUNNING, d_mem)
    :: d_st == REFUSED && k != M_RELEASED && k != M_OUTCOME ->
        if
        :: d_disk == REFUSED && d_disk_ep == d_ep -> to_s(M_REFUSED, 1)
        :: else ->
            if
            :: k == M_OFFER || k == M_SEAL -> to_s(M_REFUSED, 0)
            :: else -> d_refuse()
            fi
        fi
    :: else -> skip
    fi
}

/* A message, if it is of this attempt or opens a later one. */
inline d_take(k, e, x)
{
    if
#if MUTANT == 9
    :: e == d_ep || k == M_GRANT -> d_got(k, x)
#else
    :: e == d_ep -> d_got(k, x)
#endif
    :: e > d_ep && (d_st == LISTEN || d_st == LOADING || d_st == REFUSED) && k != M_RELEASED &&
        k != M_OUTCOME -> d_adopt(e); d_got(k, x)
    :: else -> skip
    fi
}

inline d_again()
{
    if
    :: d_st == READY && d_mem -> to_s(M_READY, 1)
    :: (d_st == READY || d_st == GRANTED || d_st == FENCED) && !d_mem -> d_refuse()
    :: (d_st == GRANTED || d_st == FENCED) && d_mem && d_prepared -> d_pend = RUNNING
    :: d_st == GRANTED && d_mem && d_failed -> to_s(M_QUERY, 1)
    :: d_st == RUNNING -> to_s(M_RUNNING, d_mem)
    :: else -> skip
    fi
}

inline d_return()
{
    d_alive = 1; d_ep = d_disk_ep;
    d_st = (d_disk == NONE -> LISTEN : d_disk);
    if
    :: d_disk == READY || d_disk == GRANTED || d_disk == FENCED -> d_refuse()
    :: d_disk == RUNNING -> d_out = O_DIED_D; to_s(M_RUNNING, 0)
    :: d_disk == REFUSED -> d_out = O_REFUSED; to_s(M_REFUSED, 1)
    :: d_disk == NONE -> skip
    fi
}

active proctype destination()
{
    byte k, e;
    bit x;

end:
    do
    :: atomic { d_alive && d_pend != NONE && !d_dur -> d_disk = d_pend; d_disk_ep = d_ep; d_dur = 1 }
    :: atomic { d_alive && d_pend != NONE && d_dur -> d_after(); }
    :: atomic { d_alive && d_pend != NONE && !d_dur && fails && !calm ->
        fails--;
        if
        :: d_disk = d_pend; d_disk_ep = d_ep
        :: skip
        fi;
        d_not_written(); }
    :: atomic { d_alive && d_pend == NONE && d_st == LOADING && d_data && !d_loaded -> d_loaded = 1;
        if
        :: d_sealed -> d_pend = READY
        :: else -> skip
        fi }
    :: atomic { d_alive && d_pend == NONE && d_st == LOADING && d_sealed && !d_data -> d_refuse(); }
    :: atomic { d_alive && d_pend == NONE && d_work -> d_work = 0; d_prepared = 1; d_pend = RUNNING }
    :: atomic { d_alive && d_pend == NONE && d_work && fails && !calm -> fails--; d_work = 0; d_failed = 1;
        d_out = O_PAUSED_D; to_s(M_QUERY, 1); }
    :: atomic { nempty(s2d) && (!calm || (d_alive && d_pend == NONE)) -> s2d?k, e, x;
        if
        :: d_alive && d_pend == NONE -> d_take(k, e, x);
        :: else -> skip
        fi;
        k = 0; e = 0; x = 0; }
    :: atomic { LOSS && !calm && nempty(s2d) && d_alive && d_pend == NONE -> s2d?<k, e, x>; d_take(k, e, x);
        k = 0; e = 0; x = 0; }
    :: atomic { LOSS && !calm && nempty(s2d) -> s2d?k, e, x; k = 0; e = 0; x = 0 }
    :: atomic { LOSS && !calm && len(s2d) > 1 -> s2d?k, e, x; s2d!k, e, x; k = 0; e = 0; x = 0 }
    :: atomic { d_alive && d_pend == NONE && (!calm && LOSS || calm && timeout && d_retry) ->
        if
        :: calm -> d_retry--
        :: else -> skip
        fi;
        d_again(); }
    :: atomic { d_alive && d_lost -> d_lost = 0;
        if
        :: d_pend == NONE && d_st == LOADING && !d_sealed -> d_refuse()
        :: d_pend == NONE && d_st == READY && d_out != O_ONLY_D -> d_out = O_UNDECIDED
        :: else -> skip
        fi }
    /* An operator vouches for a source that is down. */
    :: atomic { d_alive && d_pend == NONE && d_st == READY && d_mem && !s_alive && !calm ->
        d_pend = FENCED; fenced = 1 }
    od
}

/* ------------------------------------------------------------------ fate */

active proctype fate()
{
    do
    :: atomic { s_alive && crashes && !calm -> crashes--; excused = excused || d_failed || d_pend == REFUSED;
        s_alive = 0; s_mem = 0; s_runs = 0; s_dur = 0; s_pend = NONE; s_lost = 0; s_abort = 0;
        s_st = IDLE; s_out = 0; d_lost = 1 }
    :: atomic { d_alive && crashes && !calm -> crashes--;
        assert(!s_alive || s_back || s_mem || s_st == RELEASED); /* E: not given up too early */
        d_alive = 0; d_mem = 0; d_runs = 0; d_dur = 0; d_pend = NONE; d_lost = 0; d_sealed = 0;
        d_loaded = 0; d_data = 0; d_work = 0; d_prepared = 0; d_failed = 0; d_st = LISTEN; d_ep = 0;
        d_out = 0; s_lost = 1 }
    :: atomic { !s_alive -> s_return(); }
    :: atomic { !d_alive -> d_return(); }
    :: atomic { !calm -> calm = 1 }
    :: timeout && !s_retry && !d_retry -> break
    od;
    /* Nothing moves any more. */
    assert(s_runs + d_runs <= 1);
#ifdef NO_FAULTS
    assert(d_runs && s_st == RELEASED); /* D */
#endif
    if
    :: s_runs || d_runs -> skip
    :: else ->
        assert(s_out || s_disk == NONE);  /* E: it has a name */
        assert(d_out || d_st == LISTEN || (d_st == LOADING && !d_sealed)); /* holds nothing */
        if
        :: d_disk == RUNNING -> skip
        :: d_disk != RUNNING && s_mem -> assert(0)
        :: d_disk != RUNNING && !s_mem && d_mem -> assert(d_out == O_ONLY_D || d_out == O_PAUSED_D)
        :: else -> assert(s_out != O_UNDECIDED && s_out != O_ONLY_D)
        fi
    fi
}
