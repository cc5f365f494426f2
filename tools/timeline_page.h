/* SPDX-License-Identifier: BSD-3-Clause */
/* timeline_page.js, embedded by the build. */
#ifndef VFMIG_TOOLS_TIMELINE_PAGE_H
#define VFMIG_TOOLS_TIMELINE_PAGE_H

extern const unsigned int timeline_page_js_size;
extern const unsigned char timeline_page_js[];

#endif
