//! Maglev against its paper: building, balance, disruption.

use std::time::Instant;

use fairway_core::{MaglevTable, TableSize, Weight};

use crate::spread;

pub(crate) fn run(quick: bool) {
    let sets = if quick { 3 } else { 20 };
    println!(
        "Maglev tables, {sets} sets of equal backends each (paper: 1.8 ms at M = 65537, N = 1000)"
    );
    println!(
        "{:>7} {:>5}  {:>20}  {:>14}  {:>24}  {:>22}",
        "M",
        "N",
        "build ms (min-max)",
        "over fair",
        "moved by removing one",
        "moved by a failed check"
    );
    let sizes: &[(u32, u32)] =
        &[(1021, 10), (4093, 40), (16_381, 100), (65_537, 1000), (655_373, 1000)];
    for (size, count) in sizes {
        let size = TableSize::new(*size).unwrap();
        let (mut times, mut over, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for set in 0..sets {
            let backends: Vec<_> = (0..*count).map(|n| (name(set, n), Weight::ONE)).collect();
            let start = Instant::now();
            let table = MaglevTable::build(&backends, size);
            times.push(start.elapsed().as_secs_f64() * 1e3);
            over.push(over_fair(&table, *count));
            moved.push(moved_by_removal(&table, &backends, size));
        }
        let (median, least, most) = spread(&times);
        println!(
            "{:>7} {count:>5}  {median:>8.2} ({least:.2}-{most:.2})  {:>12.2} %  {:>18.2} % worst  {:>22}",
            size.get(),
            spread(&over).2 * 100.0,
            spread(&moved).2 * 100.0,
            "0 (overlay)",
        );
    }
    println!();
}

fn name(set: u32, n: u32) -> String {
    format!("10.{set}.{}.{}:8080", n / 250, n % 250)
}

/// How far the largest share is above the fair one.
fn over_fair(table: &MaglevTable, count: u32) -> f64 {
    let mut shares = vec![0u32; count as usize];
    table.owners().iter().for_each(|owner| shares[usize::from(*owner)] += 1);
    let largest = f64::from(*shares.iter().max().unwrap());
    largest / (f64::from(table.size()) / f64::from(count)) - 1.0
}

/// Share of all slots that change hands although their owner stays.
fn moved_by_removal(table: &MaglevTable, backends: &[(String, Weight)], size: TableSize) -> f64 {
    let gone = backends.len() / 2;
    let mut rest = backends.to_vec();
    rest.remove(gone);
    let after = MaglevTable::build(&rest, size);
    let renumbered = |owner: u16| if usize::from(owner) > gone { owner - 1 } else { owner };
    let moved =
        table.owners().iter().zip(after.owners()).filter(|(before, after)| {
            usize::from(**before) != gone && renumbered(**before) != **after
        });
    moved.count() as f64 / f64::from(table.size())
}
