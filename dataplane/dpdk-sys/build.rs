//! Generates the bindings and says what to link.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Oldest DPDK whose interface is used here: the long-term release in Debian 12.
const OLDEST: &str = "22.11";

/// What is called. Inline ones get a shim.
const FUNCTIONS: &[&str] = &[
    "fairway_(errno|link_is_up|log_to)",
    "rte_eal_(init|cleanup|hotplug_add|hotplug_remove)",
    "rte_eth_dev_(configure|start|stop|close|info_get|set_mtu|get_mtu)",
    "rte_eth_dev_(get_port_by_name|adjust_nb_rx_tx_desc)",
    "rte_eth_(rx|tx)_burst",
    "rte_eth_tx_prepare",
    "rte_eth_dev_rx_intr_(ctl_q|enable|disable)",
    "rte_dev_(event_monitor_start|hotplug_handle_enable)",
    "rte_epoll_wait",
    "rte_eth_dev_rss_(reta_update|hash_update|hash_conf_get)",
    "rte_log_(register|get_level|set_level)",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_allmulticast_enable",
    "rte_eth_(macaddr_get|stats_get|from_rings)",
    "rte_mempool_(free|avail_count)",
    "rte_pktmbuf_(pool_create|alloc_bulk|free_bulk|linearize)",
    "rte_ring_(create|free|enqueue_burst|dequeue_burst)",
    "rte_socket_id",
    "rte_strerror",
    "rte_thread_(register|unregister)",
    "rte_version",
];

/// What is read and written.
const TYPES: &[&str] = &["rte_eth_.*", "rte_ether_addr", "rte_ring", "rte_mempool"];
const CONSTANTS: &[&str] = &[
    "FAIRWAY_.*",
    "RTE_ETH_.*",
    "RTE_MBUF_.*",
    "RTE_PKTMBUF_HEADROOM",
    "RING_F_.*",
    "RTE_INTR_.*",
    "RTE_LOG_.*",
];

/// Archives that register themselves when the program starts, and so are linked whole: drivers of
/// buses, of packet memory and of cards.
const DRIVERS: &[&str] = &["librte_bus_", "librte_mempool_", "librte_net_"];
/// Libraries of the system that these need.
const NEEDED: &[&str] = &[
    "bpf", "xdp", "numa", "pcap", "ibverbs", "mlx5", "mlx4", "bsd", "mana", "elf", "z", "m", "dl",
    "atomic",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=wrapper.h");
    let probed = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .env_metadata(true)
        .probe("libdpdk");
    let library = probed.unwrap_or_else(|error| {
        let why = error.to_string();
        let why = why.lines().find(|line| line.contains("libdpdk")).unwrap_or("pkg-config failed");
        fail(&format!(
            "the feature `dpdk` needs DPDK {OLDEST} or later with its headers: on Debian and Ubuntu \
             `apt-get install libdpdk-dev libclang-dev`, on Fedora and RHEL `dnf install dpdk-devel \
             clang-devel`; {}",
            why.trim()
        ))
    });
    // fopencookie is GNU's, and musl's.
    let mut flags = vec![
        "-D_GNU_SOURCE".to_owned(),
        "-DALLOW_EXPERIMENTAL_API".into(),
        "-include".into(),
        "rte_config.h".into(),
    ];
    flags.extend(library.include_paths.iter().map(|path| format!("-I{}", path.display())));
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        // DPDK's own least processor; its headers do not compile for less.
        flags.push("-march=corei7".into());
    }
    bind(&flags);
    match env::var_os("CARGO_FEATURE_STATIC") {
        Some(_) => link_static(),
        None => link_shared(&library),
    }
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    exit(1)
}

fn bind(flags: &[String]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(flags)
        .derive_default(true)
        .layout_tests(false)
        .generate_comments(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .wrap_unsafe_ops(true)
        // A packed type around an aligned one, which Rust has no word for; not used here.
        .opaque_type("rte_arp_ipv4|rte_arp_hdr|rte_l2tpv2_combined_msg_hdr|rte_gtp_psc_generic_hdr")
        .wrap_static_fns(true)
        .wrap_static_fns_path(out.join("shims"));
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    let bindings = builder.generate().unwrap_or_else(|error| {
        fail(&format!("bindgen cannot read DPDK's headers (it needs libclang): {error}"))
    });
    let file = out.join("bindings.rs");
    if let Err(error) = bindings.write_to_file(&file) {
        fail(&format!("{}: {error}", file.display()));
    }
    let mut shims = cc::Build::new();
    shims.file(out.join("shims.c")).include(".").warnings(false).opt_level(3);
    flags.iter().for_each(|flag| _ = shims.flag(flag));
    shims.compile("fairway_dpdk_shims");
}

fn link_shared(library: &pkg_config::Library) {
    for path in &library.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    // Drivers are loaded when the EAL starts; this one is called by name.
    for name in library.libs.iter().map(String::as_str).chain(["rte_net_ring"]) {
        println!("cargo::rustc-link-lib=dylib={name}");
    }
}

fn link_static() {
    let text = |arguments: &[&str]| {
        let output = Command::new("pkg-config").args(arguments).arg("libdpdk").output();
        let output = output.ok().filter(|output| output.status.success());
        let output = output.unwrap_or_else(|| fail("pkg-config does not tell of libdpdk"));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let folder = text(&["--variable=libdir"]);
    let words = text(&["--libs", "--static"]);
    let mut archives: Vec<&str> =
        words.split_whitespace().filter_map(|word| word.strip_prefix("-l:")).collect();
    archives.sort_unstable();
    archives.dedup();
    if archives.is_empty() {
        fail("this libdpdk has no static libraries; build without the feature `static`");
    }
    println!("cargo::rustc-link-search=native={folder}");
    let is_driver = |name: &&str| DRIVERS.iter().any(|prefix| name.starts_with(prefix));
    for name in &archives {
        if !Path::new(&folder).join(name).is_file() {
            fail(&format!("{folder}/{name} is missing"));
        }
        let whole = if is_driver(name) { "+whole-archive," } else { "" };
        println!("cargo::rustc-link-lib=static:{whole}-bundle,+verbatim={name}");
    }
    for name in NEEDED {
        if words.split_whitespace().any(|word| word.strip_prefix("-l") == Some(name)) {
            println!("cargo::rustc-link-lib=dylib={name}");
        }
    }
}
