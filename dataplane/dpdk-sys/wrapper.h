/* What of DPDK is used here. */
#include <stddef.h>
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

/* Whether a port has a link; negative when it does not say. The link's fields lie in a union in some
 * releases. */
static inline int fairway_link_is_up(uint16_t port)
{
	struct rte_eth_link link = {0};

	if (rte_eth_link_get_nowait(port, &link) != 0)
		return -1;
	return link.link_status == RTE_ETH_LINK_UP;
}

/* What cards may do with packets that come, and with those that go. Checksums of the latter need no
 * help: they are changed by what changed (RFC 1624). */
static const uint64_t FAIRWAY_RECEIVE_HELP =
	RTE_ETH_RX_OFFLOAD_VLAN_STRIP | RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t FAIRWAY_SEND_HELP = RTE_ETH_TX_OFFLOAD_VLAN_INSERT;

/* Where a packet buffer has what is read and written for each packet. Its fields have moved, and
 * their unions got other names, between releases of DPDK; their own names and sizes have not. */
static const size_t FAIRWAY_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr);
static const size_t FAIRWAY_BUF_LEN = offsetof(struct rte_mbuf, buf_len);
static const size_t FAIRWAY_DATA_OFF = offsetof(struct rte_mbuf, data_off);
static const size_t FAIRWAY_DATA_LEN = offsetof(struct rte_mbuf, data_len);
static const size_t FAIRWAY_PKT_LEN = offsetof(struct rte_mbuf, pkt_len);
static const size_t FAIRWAY_OL_FLAGS = offsetof(struct rte_mbuf, ol_flags);
static const size_t FAIRWAY_VLAN_TCI = offsetof(struct rte_mbuf, vlan_tci);
static const size_t FAIRWAY_NB_SEGS = offsetof(struct rte_mbuf, nb_segs);
static const size_t FAIRWAY_PORT = offsetof(struct rte_mbuf, port);
_Static_assert(sizeof(((struct rte_mbuf *)0)->buf_len) == 2 &&
	sizeof(((struct rte_mbuf *)0)->data_off) == 2 && sizeof(((struct rte_mbuf *)0)->data_len) == 2 &&
	sizeof(((struct rte_mbuf *)0)->pkt_len) == 4 && sizeof(((struct rte_mbuf *)0)->ol_flags) == 8 &&
	sizeof(((struct rte_mbuf *)0)->vlan_tci) == 2 && sizeof(((struct rte_mbuf *)0)->nb_segs) == 2 &&
	sizeof(((struct rte_mbuf *)0)->port) == 2, "sizes of fields");
