/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/resolve.h"

#include <string.h>

enum {
    ANY = 0xff,
    UNKNOWN = 0xfe, /* the peer's journal was not seen */
    BEFORE_RUN = 0xfd, /* READY, GRANTED or FENCED */
    THERE = 0xfc,      /* FENCED or RUNNING: on its way to run, or running */
    UNWOUND = 0xfb,    /* ABORTED or RESUMED */
    DEAD = 0,
    HELD = 1,
};

/* The first row that fits is taken. */
struct row {
    uint8_t role, record, held;      /* of this side */
    uint8_t peer_record, peer_held;
    uint8_t outcome;
    uint8_t flags;
    const char *now, *todo;
};

enum {
    SETTLED = 1, /* nothing left to do on this side */
    START = 2,   /* a fresh start is safe */
};

#define S(record) VFMIG_HO_SOURCE, VFMIG_HO_RECORD_##record
#define D(record) VFMIG_HO_DESTINATION, VFMIG_HO_RECORD_##record
#define P(record) VFMIG_HO_RECORD_##record
#define O(name)   VFMIG_HO_OUTCOME_##name

#define HERE     "vfmig resolve here puts that on record"
#define ASK_PEER "look at the destination's journal too: --peer-journal"
#define REFUSE_HERE "vfmig resolve here, with the source's journal as peer, puts the refusal on record"
#define REFUSE_THERE                                                                               \
    "vfmig resolve at the destination puts its refusal on record; then vfmig resolve here"

/* clang-format off */
static const struct row rows[] = {
    {S(NONE), HELD, ANY, ANY, O(RUNS_AT_SOURCE), SETTLED,
     "no migration has begun; the guest is here", ""},
    {S(NONE), DEAD, ANY, ANY, O(DIED_AT_SOURCE), SETTLED | START,
     "no migration had begun when its process ended", ""},

    {S(OFFERED), HELD, ANY, ANY, O(NONE), SETTLED,
     "a migration is under way; the guest is here until the grant is sent", ""},
    {S(OFFERED), DEAD, P(READY), HELD, O(ONLY_AT_DESTINATION), 0,
     "the source died before the grant; the destination has the only copy, paused",
     "at the destination: vfmig resolve --run --source-is-fenced, or --refuse to give the copy up"},
    {S(OFFERED), DEAD, THERE, HELD, O(RUNS_AT_DESTINATION), 0,
     "an operator let the destination run its copy", HERE},
    {S(OFFERED), DEAD, P(RUNNING), DEAD, O(DIED_AT_DESTINATION), 0,
     "an operator let the destination run its copy; it died there", HERE},
    {S(OFFERED), DEAD, P(REFUSED), ANY, O(DIED_AT_SOURCE), 0,
     "the guest died with the source; the destination has no copy", HERE},
    {S(OFFERED), DEAD, UNKNOWN, ANY, O(UNDECIDED), 0,
     "the guest died with the source, before the grant; the destination may have a copy", ASK_PEER},
    {S(OFFERED), DEAD, ANY, ANY, O(DIED_AT_SOURCE), 0,
     "the guest died with the source; the destination has no copy, but has not refused yet",
     REFUSE_THERE},

    {S(GRANT_SENT), ANY, P(RUNNING), HELD, O(RUNS_AT_DESTINATION), 0,
     "the guest runs at the destination; the source has not learnt it yet", HERE},
    {S(GRANT_SENT), HELD, P(RUNNING), DEAD, O(DIED_AT_DESTINATION), 0,
     "the guest died with the destination after it had begun to run; the source keeps its old memory",
     "vfmig resolve --discard gives that memory up; it must not run"},
    {S(GRANT_SENT), DEAD, P(RUNNING), DEAD, O(DIED_AT_DESTINATION), 0,
     "the guest died with the destination after it had begun to run", HERE},
    {S(GRANT_SENT), HELD, P(REFUSED), ANY, O(RUNS_AT_SOURCE), 0,
     "the destination has refused; the source has the guest and may run it", "vfmig resolve here resumes it"},
    {S(GRANT_SENT), DEAD, P(REFUSED), ANY, O(DIED_AT_SOURCE), 0,
     "the destination has refused, but the guest died with the source", HERE},
    {S(GRANT_SENT), HELD, BEFORE_RUN, DEAD, O(UNDECIDED), 0,
     "the guest is paused here; the destination died before it ran", REFUSE_THERE},
    {S(GRANT_SENT), DEAD, BEFORE_RUN, DEAD, O(DIED_AT_SOURCE), 0,
     "both sides died before the guest ran at the destination", REFUSE_THERE},
    {S(GRANT_SENT), ANY, BEFORE_RUN, HELD, O(PAUSED_AT_DESTINATION), 0,
     "the destination has the guest and may run it",
     "let them connect again, or vfmig resolve --run at the destination with this journal as peer"},
    {S(GRANT_SENT), HELD, ANY, ANY, O(UNDECIDED), 0,
     "the grant was sent, no answer came; the guest is paused here", ASK_PEER},
    {S(GRANT_SENT), DEAD, ANY, ANY, O(UNDECIDED), 0,
     "the grant was sent, then the source died; only the destination knows", ASK_PEER},

    {S(RELEASED), ANY, P(RUNNING), DEAD, O(DIED_AT_DESTINATION), SETTLED,
     "the guest moved to the destination, and its process has ended there", ""},
    {S(RELEASED), ANY, ANY, ANY, O(RUNS_AT_DESTINATION), SETTLED,
     "the guest moved to the destination", ""},
    {S(SAVED), ANY, P(RUNNING), HELD, O(RUNS_AT_DESTINATION), SETTLED,
     "the guest was saved to a file and restored from it; it runs there", ""},
    {S(SAVED), ANY, P(RUNNING), DEAD, O(DIED_AT_DESTINATION), SETTLED,
     "the guest was saved to a file and restored from it; its process has ended there", ""},
    {S(SAVED), HELD, ANY, ANY, O(SAVED), SETTLED,
     "the guest is in a file and stands still here",
     "restore it; or vfmig resolve --discard-file: it goes on here"},
    {S(SAVED), DEAD, ANY, ANY, O(SAVED), SETTLED,
     "the guest is in a file", "restore it; or vfmig resolve --discard-file gives it up"},

    {S(ABORTED), HELD, ANY, ANY, O(RUNS_AT_SOURCE), SETTLED,
     "the migration was unwound; the guest runs here", ""},
    {S(ABORTED), DEAD, THERE, HELD, O(RUNS_AT_DESTINATION), 0,
     "an operator let the destination run a copy that was stale", HERE},
    {S(ABORTED), DEAD, P(RUNNING), DEAD, O(DIED_AT_DESTINATION), 0,
     "an operator let the destination run a copy that was stale; it died there", HERE},
    {S(ABORTED), DEAD, P(REFUSED), ANY, O(DIED_AT_SOURCE), 0,
     "the migration was unwound, later the guest died with the source", HERE},
    {S(ABORTED), DEAD, UNKNOWN, ANY, O(UNDECIDED), 0,
     "the migration was unwound, later the guest died here; has the destination refused?", ASK_PEER},
    {S(ABORTED), DEAD, ANY, ANY, O(DIED_AT_SOURCE), 0,
     "the migration was unwound, later the guest died here; the destination's copy is stale",
     "vfmig resolve --refuse at the destination; then vfmig resolve here"},

    {S(RESUMED), HELD, ANY, ANY, O(RUNS_AT_SOURCE), SETTLED,
     "the migration was unwound; the guest is here alone", ""},
    {S(RESUMED), DEAD, ANY, ANY, O(DIED_AT_SOURCE), SETTLED | START,
     "the migration was unwound; later the guest's process ended", ""},

    {D(NONE), ANY, P(OFFERED), DEAD, O(REFUSED), 0,
     "the source died before everything had arrived here", REFUSE_HERE},
    {D(NONE), ANY, P(GRANT_SENT), ANY, O(REFUSED), 0,
     "nothing that could run is here, and the source has sent a grant", REFUSE_HERE},
    {D(NONE), ANY, P(ABORTED), ANY, O(REFUSED), 0,
     "the source has unwound before everything had arrived here", REFUSE_HERE},
    {D(NONE), HELD, ANY, ANY, O(NONE), SETTLED, "nothing complete has arrived", ""},
    {D(NONE), DEAD, ANY, ANY, O(REFUSED), SETTLED, "its process ended before everything had arrived here", ""},
    {D(READY), HELD, UNWOUND, ANY, O(REFUSED), 0,
     "the source has unwound: the copy here is stale", "vfmig resolve --refuse gives it up"},
    {D(READY), HELD, P(GRANT_SENT), ANY, O(PAUSED_AT_DESTINATION), 0,
     "a copy is here, paused; the source has granted it",
     "let them connect again, or vfmig resolve --run delivers the grant"},
    {D(READY), HELD, P(OFFERED), DEAD, O(ONLY_AT_DESTINATION), 0,
     "the source died before the grant; the only copy is here, paused",
     "vfmig resolve --run --source-is-fenced, or --refuse to give the copy up"},
    {D(READY), HELD, P(OFFERED), HELD, O(NONE), SETTLED, "a copy is here; the grant is awaited", ""},
    {D(READY), HELD, ANY, ANY, O(UNDECIDED), 0,
     "a copy is here, paused, and no grant came",
     "let them connect again; if the source is off for good: vfmig resolve --run --source-is-fenced"},
    {D(READY), DEAD, ANY, ANY, O(REFUSED), 0,
     "the copy died here before it ran", "vfmig resolve puts the refusal on record: the source may go on"},

    {D(GRANTED), HELD, ANY, ANY, O(PAUSED_AT_DESTINATION), SETTLED,
     "the guest is here by grant and does not run yet", ""},
    {D(GRANTED), DEAD, ANY, ANY, O(REFUSED), 0,
     "the guest died here before it ran", "vfmig resolve puts the refusal on record: the source may go on"},
    {D(FENCED), HELD, ANY, ANY, O(PAUSED_AT_DESTINATION), SETTLED,
     "the guest is here by an operator's word and does not run yet", ""},
    {D(FENCED), DEAD, ANY, ANY, O(REFUSED), 0,
     "the guest died here before it ran", "vfmig resolve puts the refusal on record"},
    {D(RUNNING), HELD, ANY, ANY, O(RUNS_AT_DESTINATION), SETTLED, "the guest runs here", ""},
    {D(RUNNING), DEAD, ANY, ANY, O(DIED_AT_DESTINATION), SETTLED | START,
     "the guest ran here; its process has ended", ""},
    {D(REFUSED), ANY, ANY, ANY, O(REFUSED), SETTLED, "refused: the guest is the source's", ""},
};
/* clang-format on */

static bool peer_fits(uint8_t wanted, const struct vfmig_resolve_view *view)
{
    uint8_t record = view->peer.last.record;

    if (wanted == ANY)
        return true;
    if (wanted == UNKNOWN || !view->peer_known)
        return (wanted == UNKNOWN) == !view->peer_known;
    switch (wanted) {
    case BEFORE_RUN:
        return record == P(READY) || record == P(GRANTED) || record == P(FENCED);
    case THERE:
        return record == P(FENCED) || record == P(RUNNING);
    case UNWOUND:
        return record == P(ABORTED) || record == P(RESUMED);
    default:
        return record == wanted;
    }
}

static bool fits(const struct row *row, const struct vfmig_resolve_view *view)
{
    return row->role == view->own.last.role && row->record == view->own.last.record &&
           (row->held == ANY || row->held == view->own.held) && peer_fits(row->peer_record, view) &&
           (row->peer_held == ANY || row->peer_held == view->peer.held);
}

/* Its process had claimed a file and is gone: what it has on record is of an earlier claim. */
static void judge_claim(struct vfmig_resolve_view *view)
{
    if (view->own.last.role != VFMIG_HO_DESTINATION || view->own.held ||
        view->own.opened.epoch <= view->own.last.epoch)
        return;
    view->outcome = O(REFUSED);
    view->settled = view->may_start = false;
    view->now = "it died while it restored a guest from a file, and the claim on that stands";
    view->todo = "vfmig resolve here puts the refusal on record: the file can be restored again";
}

#define CONT "repair or give up what keeps it, then QMP cont at that process"

/* RUNNING on record says whose the guest is for good, not that its start succeeded. */
static void judge_standing(struct vfmig_resolve_view *view)
{
    const struct vfmig_journal_entry *own = &view->own.last, *peer = &view->peer.last;

    if (own->role == VFMIG_HO_DESTINATION && own->record == P(RUNNING) && own->stands) {
        bool died = view->outcome == O(DIED_AT_DESTINATION);
        view->outcome = died ? O(DIED_AT_DESTINATION) : O(PAUSED_AT_DESTINATION);
        view->settled = died;
        view->now = died ? "the guest was here for good and could not be started; its process has ended"
                         : "the guest is here for good and stands still: its start failed";
        view->todo = died ? "" : CONT;
    } else if (view->outcome == O(RUNS_AT_DESTINATION) && view->peer_known &&
               peer->record == P(RUNNING) && peer->stands && view->peer.held) {
        view->outcome = O(PAUSED_AT_DESTINATION);
        view->now = "the guest is the destination's for good and stands still there: its start failed";
    }
}

/* Records that the guest's memory goes with, in a process that had it when it opened the journal. */
static bool has_memory(const struct vfmig_journal_summary *side)
{
    uint8_t record = side->last.record;

    return side->held && side->opened.memory && record != P(RELEASED) && record != P(REFUSED) &&
           (side->last.role == VFMIG_HO_SOURCE || record != P(NONE));
}

void vfmig_resolve_judge(const struct vfmig_journal_summary *own,
                         const struct vfmig_journal_summary *peer,
                         struct vfmig_resolve_view *ret_view)
{
    *ret_view = (struct vfmig_resolve_view){.own = *own, .now = "its journal is damaged", .todo = ""};
    if (own->damage) {
        ret_view->todo = "see what the other side has on record, which often decides; then move this journal away, and keep it";
        return;
    }
    /* A process that came back after a crash holds the journal, but not the guest. */
    bool empty = own->held && !own->opened.memory;
    /* A peer of another attempt says nothing about this one; an empty journal is of every attempt. */
    bool same = peer && (peer->last.epoch == own->last.epoch || !peer->last.record ||
                         own->last.record == P(SAVED) || peer->last.record == P(SAVED) ||
                         (!own->last.record && own->last.role == VFMIG_HO_DESTINATION));
    if (same && !peer->damage) {
        ret_view->peer = *peer;
        ret_view->peer_known = true;
        ret_view->peer.held = peer->held && peer->opened.memory;
    }
    ret_view->own.held = own->held && !empty;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (!fits(&rows[i], ret_view))
            continue;
        ret_view->outcome = rows[i].outcome;
        ret_view->settled = rows[i].flags & SETTLED;
        ret_view->may_start = rows[i].flags & START;
        ret_view->now = rows[i].now;
        ret_view->todo = rows[i].todo;
        break;
    }
    ret_view->own.held = own->held;
    judge_claim(ret_view);
    judge_standing(ret_view);
    ret_view->memory_here = has_memory(own);
}
