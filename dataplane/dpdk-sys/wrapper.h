/* What of DPDK is used here. */
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_prefetch.h>
#include <rte_ring.h>
#include <rte_version.h>

/* rte_errno is a macro over a thread-local variable. */
static inline int fairway_errno(void) { return rte_errno; }

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

/* Where a packet of one segment lies in its buffer from now on, and nothing that a card should do.
 * Whose the buffer is stays: some drivers attach their own. */
static inline void
fairway_place(struct rte_mbuf *packet, uint16_t start, uint16_t length)
{
	packet->data_off = start;
	packet->data_len = length;
	packet->pkt_len = length;
	packet->ol_flags &= RTE_MBUF_F_EXTERNAL | RTE_MBUF_F_INDIRECT;
}

/* Takes the outer tag off packets that have it in their bytes; says how many lie in several
 * buffers. */
static inline uint16_t
fairway_strip(struct rte_mbuf **packets, uint16_t count)
{
	uint16_t parted = 0;

	for (uint16_t n = 0; n < count; n++) {
		rte_vlan_strip(packets[n]);
		parted += packets[n]->nb_segs > 1;
	}
	return parted;
}

/* The number of the port that a packet came by, as its worker knows it. */
static inline void fairway_mark(struct rte_mbuf *packet, uint16_t port) { packet->port = port; }
