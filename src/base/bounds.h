/* SPDX-License-Identifier: BSD-3-Clause */
/* Every limit on what a peer, a stream or a device can make grow, by name. */
#ifndef VFMIG_BASE_BOUNDS_H
#define VFMIG_BASE_BOUNDS_H

#define VFMIG_MAX_DEVICES        256u         /* devices in one migration */
#define VFMIG_MAX_RAM_BLOCKS     64u          /* blocks in one memory map */
#define VFMIG_MAX_CHANNELS       16u          /* connections of one migration */
#define VFMIG_MAX_KNOCKS         128u         /* connections that wait to be accepted, at one address */
#define VFMIG_MAX_GREETINGS      32u          /* of a destination, that are not let in yet: half-open migrations */
#define VFMIG_MAX_GREETING_BYTES (1u << 20)   /* what one of them has it hold, TLS and all */
#define VFMIG_MAX_GREETING_TRIES 64u          /* of a source that was turned out before it was answered */
#define VFMIG_MAX_GREETING_SKIPS 8u           /* records of one that nobody knows */
#define VFMIG_MAX_VCPUS          64u          /* vCPUs of one guest */
#define VFMIG_MAX_MSG_FDS        16u          /* descriptors in one vfio-user message */
#define VFMIG_SEND_ROOM          (512u << 10) /* bytes sent on a vfio-user socket and not yet read */
#define VFMIG_MAX_DATA_XFER      (1u << 20)   /* vfio-user data bytes offered by default */
#define VFMIG_MAX_DATA_XFER_CAP  (64u << 20)  /* most that is ever negotiated */
#define VFMIG_MAX_WINDOWS        8u           /* windows of device data in one shared area */
#define VFMIG_MAX_DMA_REGIONS    4096u        /* DMA_MAPs of one vfio-user client */
#define VFMIG_MAX_OPEN_DMA       256u         /* a device's DMAs by message that are open at once */
#define VFMIG_MAX_LATE_DMA       256u         /* a device's DMAs by message that the client answers late */
#define VFMIG_MAX_LATE_DMA_BYTES (16u << 20)  /* their data */
#define VFMIG_MAX_IOMMU_MAPPINGS 8192u        /* of all domains of a vIOMMU */
#define VFMIG_MAX_REGIONS        16u          /* regions of one device */
#define VFMIG_MAX_IRQS           2048u        /* vectors of one interrupt index */
#define VFMIG_MAX_JSON           4096u        /* bytes of a vfio-user VERSION text */
#define VFMIG_MAX_QMP_CLIENTS    8u           /* connections of one control socket */
#define VFMIG_MAX_QMP_INPUT      65536u       /* bytes of one QMP request */
#define VFMIG_MAX_QMP_OUTPUT     (1u << 20)   /* bytes queued for a client that does not read */
#define VFMIG_MAX_TRACE_KEPT     (4u << 20)   /* bytes of a trace that waits to be fetched */
#define VFMIG_MAX_TRACE_SENT     (1u << 20) /* bytes of a trace that a source takes from its peer */
#define VFMIG_MAX_TRACE_ANSWER   (128u << 10) /* of them in one answer, before they are escaped */
#define VFMIG_MAX_FLIGHT_HEAD    (512u << 10) /* bytes of a flight recorder: who migrates, */
#define VFMIG_MAX_FLIGHT_KEPT    (1u << 20)   /* what they did, */
#define VFMIG_MAX_FLIGHT_MORE    (2u << 20)   /* and what they say when it is written already */
#define VFMIG_FLIGHT_SPARE       (4u << 20)   /* bytes of the disk that it leaves to the journal */
#define VFMIG_MAX_HTTP_REQUEST   4096u        /* bytes of a request for metrics */
#define VFMIG_MAX_QMP_DEPTH      16           /* nesting of one QMP request */

#define VFMIG_MAX_HANDLES        64u          /* IMS and PASID handles of a device, and of its map */
#define VFMIG_MAX_PENDING        64u          /* commands of all clients that are answered later */
#define VFMIG_MAX_HELD           256u         /* owner's accesses held until the state is loaded */
#define VFMIG_MAX_HELD_BYTES     64u          /* payload of one of them */
#define VFMIG_MAX_FLUSH_READS    64u          /* receives of owner messages before a state write */
#define VFMIG_MAX_LOG_BYTES      (256ull << 20) /* bitmaps of the DMA log */
#define VFMIG_MAX_LOG_RANGES     4096u        /* ranges of the DMA log */
#define VFMIG_MAX_LOG_RESTS      256u         /* parts of its pages that a report did not cover */
#define VFMIG_MAX_LOG_PAGE       (1ull << 30) /* bytes of a page of the DMA log */
#define VFMIG_MAX_LATER_BYTES    VFMIG_MAX_DATA_XFER_CAP /* data of accesses answered later */

/* Migration stream (tables/stream.def). Pages go straight into guest memory; everything else is
 * received into one buffer a channel, of the largest of these at most. */
#define VFMIG_MAX_MEMORY_RUNS    512u         /* runs of pages in one MEMORY or ZERO record */
#define VFMIG_MAX_MEMORY_PAGES   512u         /* pages of bytes in one MEMORY record */
#define VFMIG_MAX_MEMORY_RECORD  (8u + 16u * VFMIG_MAX_MEMORY_RUNS + 4100u * VFMIG_MAX_MEMORY_PAGES)
#define VFMIG_MAX_DEVICE_PIECE   (1u << 20)   /* bytes of device state in one record */
#define VFMIG_MAX_DEVICE_SEGMENT (8u << 20)   /* bytes of one segment that is held until it is whole */
#define VFMIG_MAX_DEVICE_PORTION (64u << 20)  /* bytes of one that is passed on as it comes: a v1 portion */
#define VFMIG_MAX_UNFINISHED     (16u << 20)  /* bytes of segments that are held, all devices */
#define VFMIG_WINDOW_ALL         (16u << 20)  /* device data on its way or waiting to be loaded: what all */
#define VFMIG_WINDOW_MAX         (8u << 20)   /* devices share, and the most of one */
#define VFMIG_MAX_BACKLOG        (16u << 20)  /* what waits to be loaded, all devices, whatever the source
                                                 obeys: above it the channel waits */
#define VFMIG_MAX_VMSTATE        (1u << 20)   /* bytes of vCPU and VMM state */
#define VFMIG_MAX_IDENTITY       (1u << 18)   /* bytes of the identity text */
#define VFMIG_MAX_HANDOVER       256u         /* bytes of a handover message */
#define VFMIG_MAX_STREAM_TEXT    1024u        /* bytes of a verdict, an error, a progress text */
#define VFMIG_MAX_SKIPPED        (1u << 20)   /* payload of an unknown optional record */
#define VFMIG_MAX_CHANNEL_BUFFER ((1u << 20) + 16u) /* receive buffer of one channel */
#define VFMIG_MAX_SAVE_RECORDS   64u          /* in the log of a saved guest's file: claims, above all */
#define VFMIG_MAX_JOURNALS       4096u        /* files in one journal directory */
#define VFMIG_MAX_JOURNAL_RECORDS 4096u      /* records in one journal */

#endif
