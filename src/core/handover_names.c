/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/handover.h"

static const char *name_of(const char *const *names, unsigned count, unsigned value)
{
    return value < count && names[value] ? names[value] : "unknown";
}

const char *vfmig_ho_record_name(unsigned record)
{
    static const char *const names[VFMIG_HO_RECORD_COUNT] = {
        [VFMIG_HO_RECORD_NONE] = "none",
        [VFMIG_HO_RECORD_OFFERED] = "OFFERED",
        [VFMIG_HO_RECORD_GRANT_SENT] = "GRANT-SENT",
        [VFMIG_HO_RECORD_RELEASED] = "RELEASED",
        [VFMIG_HO_RECORD_SAVED] = "SAVED",
        [VFMIG_HO_RECORD_ABORTED] = "ABORTED",
        [VFMIG_HO_RECORD_RESUMED] = "RESUMED",
        [VFMIG_HO_RECORD_READY] = "READY",
        [VFMIG_HO_RECORD_GRANTED] = "GRANTED",
        [VFMIG_HO_RECORD_FENCED] = "FENCED",
        [VFMIG_HO_RECORD_RUNNING] = "RUNNING",
        [VFMIG_HO_RECORD_REFUSED] = "REFUSED",
    };
    return name_of(names, VFMIG_HO_RECORD_COUNT, record);
}

const char *vfmig_ho_state_name(unsigned state)
{
    static const char *const names[VFMIG_HO_STATE_COUNT] = {
        [VFMIG_HO_SRC_IDLE] = "src-idle",         [VFMIG_HO_SRC_OFFERED] = "src-offered",
        [VFMIG_HO_SRC_STOPPED] = "src-stopped",   [VFMIG_HO_SRC_ABORTING] = "src-aborting",
        [VFMIG_HO_SRC_GRANTED] = "src-granted",   [VFMIG_HO_SRC_ABORTED] = "src-aborted",
        [VFMIG_HO_SRC_RESUMED] = "src-resumed",   [VFMIG_HO_SRC_RELEASED] = "src-released",
        [VFMIG_HO_SRC_SAVED] = "src-saved",       [VFMIG_HO_DST_LISTEN] = "dst-listen",
        [VFMIG_HO_DST_LOADING] = "dst-loading",   [VFMIG_HO_DST_READY] = "dst-ready",
        [VFMIG_HO_DST_GRANTED] = "dst-granted",   [VFMIG_HO_DST_FENCED] = "dst-fenced",
        [VFMIG_HO_DST_RUNNING] = "dst-running",   [VFMIG_HO_DST_REFUSED] = "dst-refused",
    };
    return name_of(names, VFMIG_HO_STATE_COUNT, state);
}

const char *vfmig_ho_msg_name(unsigned kind)
{
    static const char *const names[VFMIG_HO_MSG_COUNT] = {
        [VFMIG_HO_MSG_NONE] = "none",         [VFMIG_HO_MSG_OFFER] = "offer",
        [VFMIG_HO_MSG_SEAL] = "seal",         [VFMIG_HO_MSG_READY] = "ready",
        [VFMIG_HO_MSG_GRANT] = "grant",       [VFMIG_HO_MSG_RUNNING] = "running",
        [VFMIG_HO_MSG_REFUSED] = "refused",   [VFMIG_HO_MSG_ABORT] = "abort",
        [VFMIG_HO_MSG_RELEASED] = "released", [VFMIG_HO_MSG_QUERY] = "query",
        [VFMIG_HO_MSG_OUTCOME] = "outcome",
    };
    return name_of(names, VFMIG_HO_MSG_COUNT, kind);
}

const char *vfmig_ho_outcome_name(unsigned outcome)
{
    static const char *const names[VFMIG_HO_OUTCOME_COUNT] = {
        [VFMIG_HO_OUTCOME_NONE] = "under-way",
        [VFMIG_HO_OUTCOME_RUNS_AT_SOURCE] = "runs-at-source",
        [VFMIG_HO_OUTCOME_RUNS_AT_DESTINATION] = "runs-at-destination",
        [VFMIG_HO_OUTCOME_SAVED] = "saved",
        [VFMIG_HO_OUTCOME_UNDECIDED] = "undecided",
        [VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION] = "paused-at-destination",
        [VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION] = "only-at-destination",
        [VFMIG_HO_OUTCOME_REFUSED] = "refused",
        [VFMIG_HO_OUTCOME_DIED_AT_SOURCE] = "died-at-source",
        [VFMIG_HO_OUTCOME_DIED_AT_DESTINATION] = "died-at-destination",
        [VFMIG_HO_OUTCOME_CONFLICT] = "conflict",
    };
    return name_of(names, VFMIG_HO_OUTCOME_COUNT, outcome);
}
