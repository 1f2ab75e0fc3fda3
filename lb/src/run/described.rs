//! What the process's own metrics mean.

/// Has a scrape say it.
pub(super) fn describe_metrics() {
    metrics::describe_counter!("fairway_config_reloads_total", "Configurations read, by result.");
    metrics::describe_gauge!(
        "fairway_config_last_reload_successful",
        "Whether the newest configuration runs."
    );
    metrics::describe_gauge!("fairway_snapshot_generation", "Generation of the snapshot.");
    metrics::describe_histogram!("fairway_publish_seconds", "Time to make and publish a snapshot.");
    metrics::describe_histogram!(
        "fairway_cluster_lag_seconds",
        "From what a watch of the API server tells to workers that know it."
    );
    metrics::describe_gauge!("fairway_listeners_failed", "Listeners that the kernel refused.");
    metrics::describe_gauge!(
        "fairway_addresses_missing",
        "Addresses of services that are not on this machine."
    );
    metrics::describe_counter!(
        "fairway_health_checks_total",
        "Health checks and questions to agents, by type and result."
    );
    metrics::describe_counter!("fairway_dns_lookups_total", "Names asked for, by result.");
    metrics::describe_gauge!(
        "fairway_dns_names_failing",
        "Names of backends that cannot be resolved now."
    );
    for (name, help) in [
        ("fairway_cluster_objects", "Objects of the cluster that are known, by kind."),
        (
            "fairway_cluster_watch_up",
            "Whether a kind of objects can be watched; absent while it always could.",
        ),
        ("fairway_cluster_services", "Services of the cluster that are ours."),
        ("fairway_cluster_services_without_address", "Those of them that wait for an address."),
        ("fairway_cluster_leader", "Whether this box gives addresses and writes status."),
        ("fairway_address_pool_assigned", "Addresses of a pool that Services have."),
        ("fairway_address_pool_size", "Addresses of a pool, given away or not."),
    ] {
        metrics::describe_gauge!(name, help);
    }
    metrics::describe_counter!(
        "fairway_cluster_api_errors_total",
        "Requests that the API server refused or did not answer, by the kind of object."
    );
    metrics::describe_counter!(
        "fairway_cluster_updates_total",
        "What the API server was told of Services, by result."
    );
    metrics::describe_gauge!("fairway_port_up", "Whether an interface carries packets.");
    metrics::describe_gauge!(
        "fairway_packet_guard_up",
        "Whether the kernel is kept from packets of packet services."
    );
    metrics::describe_gauge!("fairway_packet_flows_limit", "Flows that there is room for.");
    metrics::describe_gauge!(
        "fairway_processes_draining",
        "Processes before this one that still have connections."
    );
    metrics::describe_gauge!(
        "fairway_connections_draining",
        "Connections that are still open in processes before this one."
    );
    metrics::describe_counter!(
        "fairway_agent_failures_total",
        "Questions to backends' agents without a good answer."
    );
    metrics::describe_counter!(
        "fairway_connection_log_failed_lines_total",
        "Lines of the log of connections that could not be written."
    );
    metrics::describe_gauge!("fairway_info", "The running version.");
    metrics::gauge!("fairway_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}
