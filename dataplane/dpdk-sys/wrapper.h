/* What of DPDK is used here. */
#include <stdio.h>
#include <sys/types.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_prefetch.h>
#include <rte_ring.h>
#include <rte_version.h>

/* Who reads what DPDK logs: a line with its level, by the thread that logs it. */
typedef void (*fairway_log_line)(uint32_t level, const char *line, size_t length);

static inline ssize_t fairway_log_write(void *to, const char *line, size_t length)
{
	((fairway_log_line)to)((uint32_t)rte_log_cur_msg_loglevel(), line, length);
	return (ssize_t)length;
}

/* Hands the log over; lines come whole. */
static inline int fairway_log_to(fairway_log_line to)
{
	cookie_io_functions_t functions = { .write = fairway_log_write };
	FILE *file = fopencookie((void *)to, "w", functions);

	if (file == NULL || setvbuf(file, NULL, _IOLBF, BUFSIZ) != 0)
		return -1;
	return rte_openlog_stream(file);
}

/* rte_errno is a macro over a thread-local variable. */
static inline int fairway_errno(void) { return rte_errno; }

/* What cards may do with packets that come, and with those that go. Checksums of the latter need no
 * help: they are changed by what changed (RFC 1624). */
static const uint64_t FAIRWAY_RECEIVE_HELP =
	RTE_ETH_RX_OFFLOAD_VLAN_STRIP | RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t FAIRWAY_SEND_HELP = RTE_ETH_TX_OFFLOAD_VLAN_INSERT;

/* What is wanted of a packet buffer. Its fields have moved between releases of DPDK: so they are
 * read and written here, where the headers know them, a burst at a call. */
struct fairway_view {
	uint8_t *buffer;
	uint64_t flags;
	uint16_t size;
	uint16_t start;
	uint16_t length;
	uint16_t tag;
	uint16_t segments;
	uint16_t port;
};

static inline void
fairway_views(struct rte_mbuf **packets, struct fairway_view *views, uint16_t count)
{
	for (uint16_t n = 0; n < count; n++) {
		const struct rte_mbuf *packet = packets[n];
		views[n].buffer = (uint8_t *)packet->buf_addr;
		views[n].flags = packet->ol_flags;
		views[n].size = packet->buf_len;
		views[n].start = packet->data_off;
		views[n].length = packet->data_len;
		views[n].tag = packet->vlan_tci;
		views[n].segments = packet->nb_segs;
		views[n].port = packet->port;
	}
}

/* Where a packet of one segment lies in its buffer from now on, and all that a card should do: put a
 * tag on, unless that is negative. Whose the buffer is stays: some drivers attach their own. */
static inline void
fairway_place(struct rte_mbuf *packet, uint16_t start, uint16_t length, int32_t tag)
{
	packet->data_off = start;
	packet->data_len = length;
	packet->pkt_len = length;
	packet->ol_flags &= RTE_MBUF_F_EXTERNAL | RTE_MBUF_F_INDIRECT;
	if (tag >= 0) {
		packet->ol_flags |= RTE_MBUF_F_TX_VLAN;
		packet->vlan_tci = (uint16_t)tag;
	}
}

/* Takes the outer tag off packets that have it in their bytes still; says how many lie in several
 * buffers. */
static inline uint16_t
fairway_strip(struct rte_mbuf **packets, uint16_t count)
{
	uint16_t parted = 0;

	for (uint16_t n = 0; n < count; n++) {
		if (!(packets[n]->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED))
			rte_vlan_strip(packets[n]);
		parted += packets[n]->nb_segs > 1;
	}
	return parted;
}

/* The number of the port that a packet came by, as its worker knows it. */
static inline void fairway_mark(struct rte_mbuf *packet, uint16_t port) { packet->port = port; }
