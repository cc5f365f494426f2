/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/probes.h"

#if __has_include(<sys/sdt.h>) && !defined(VFMIG_NO_PROBES)
#include <sys/sdt.h>

/* Fields from the first one on; those that a probe does not have are not looked at. */
#define FIRE_1(name) DTRACE_PROBE1(vfmig, name, side)
#define FIRE_2(name) DTRACE_PROBE2(vfmig, name, side, F(0))
#define FIRE_3(name) DTRACE_PROBE3(vfmig, name, side, F(0), F(1))
#define FIRE_4(name) DTRACE_PROBE4(vfmig, name, side, F(0), F(1), F(2))
#define FIRE_5(name) DTRACE_PROBE5(vfmig, name, side, F(0), F(1), F(2), F(3))
#define FIRE_6(name) DTRACE_PROBE6(vfmig, name, side, F(0), F(1), F(2), F(3), F(4))
#define FIRE_7(name) DTRACE_PROBE7(vfmig, name, side, F(0), F(1), F(2), F(3), F(4), F(5))
#define FIRE_8(name) DTRACE_PROBE8(vfmig, name, side, F(0), F(1), F(2), F(3), F(4), F(5), F(6))
#define F(number)    values[number].u

void vfmig_probe(enum vfmig_trace_event event, bool source, const struct vfmig_trace_value *values)
{
    const int side = source;

    switch (event) {
#define PROBE(name, id, arguments)                                                                 \
    case VFMIG_TRACE_##id:                                                                         \
        FIRE_##arguments(name);                                                                    \
        break;
#include "../tables/probes.def"
    default:
        break;
    }
}

#else

void vfmig_probe(enum vfmig_trace_event event, bool source, const struct vfmig_trace_value *values)
{
}

#endif

static const struct vfmig_probe_info probes[] = {
#define PROBE(text, id, count) {.name = #text, .event = VFMIG_TRACE_##id, .arguments = count},
#include "../tables/probes.def"
    {0},
};

const struct vfmig_probe_info *vfmig_probes(void)
{
    return probes;
}
