//! `fairway top`: services or backends on a terminal, the busiest first; keys as in top(1).

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Clear, Paragraph, Row, Table};

use super::client::Client;
use super::table::bytes;
use super::{EXIT_FAILURE, EXIT_UNREACHABLE};
use crate::admin::Summary;

/// The shortest time between two answers.
const SHORTEST: Duration = Duration::from_millis(100);

const HELP: &str = "\
  q, Ctrl-C   end                      Space, Enter  ask now
  Tab, b      services or backends     d, s          seconds from one answer to the next
  < >         the column to sort by    R             the other way round
  i           those without traffic    Up Down PgUp PgDn Home End
  h, ?        this help                any key closes it";

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Services,
    Backends,
}

/// A row: its words, its numbers, and how it stands.
struct Entry {
    name: String,
    more: String,
    state: String,
    /// By column: open, connections a second, bytes a second from and to clients.
    numbers: [f64; 4],
    cause: String,
}

/// What is shown, and how.
struct Top {
    now: Option<Summary>,
    entries: Vec<Entry>,
    /// Counts at the last answer, by what they are of.
    before: HashMap<String, [u64; 3]>,
    asked: Option<Instant>,
    list: List,
    /// Of `numbers`; the last is the name.
    column: usize,
    reverse: bool,
    idle: bool,
    offset: usize,
    delay: Duration,
    help: bool,
    /// A number that is being typed.
    typed: Option<String>,
    trouble: Option<String>,
}

const COLUMNS: [&str; 5] = ["OPEN", "CONN/S", "IN/S", "OUT/S", "NAME"];

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Ask,
    End,
}

/// Shows what the Fairway at `socket` does, `count` times or until `q`.
pub(super) fn top(socket: &Path, delay: Duration, count: Option<u64>) -> ExitCode {
    if !std::io::stdout().is_terminal() {
        eprintln!("fairway: `top` needs a terminal; `fairway services` prints the same once");
        return ExitCode::from(EXIT_FAILURE);
    }
    let client = Client::new(socket);
    let mut top = Top::new(delay.max(SHORTEST));
    // Before the screen is taken: an error is read where it was asked for.
    match client.get("/v1/summary") {
        Ok(summary) => top.take(summary, Instant::now()),
        Err(error) => {
            eprintln!("fairway: {error}");
            return ExitCode::from(EXIT_UNREACHABLE);
        }
    }
    // It gives the screen back also after a panic.
    let mut terminal = ratatui::init();
    let outcome = follow(&mut terminal, &client, &mut top, count);
    ratatui::restore();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway: {error}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn follow(
    terminal: &mut ratatui::DefaultTerminal,
    client: &Client<'_>,
    top: &mut Top,
    count: Option<u64>,
) -> std::io::Result<()> {
    let mut left = count.unwrap_or(u64::MAX).max(1) - 1;
    let mut due = Instant::now() + top.delay;
    loop {
        terminal.draw(|frame| top.draw(frame))?;
        let mut ask = false;
        if event::poll(due.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match top.key(key) {
                    Wish::End => return Ok(()),
                    Wish::Ask => ask = true,
                    Wish::Nothing => {}
                },
                _ => {}
            }
        }
        if ask || Instant::now() >= due {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            match client.get("/v1/summary") {
                Ok(summary) => top.take(summary, Instant::now()),
                Err(error) => top.trouble = Some(error.to_string()),
            }
            due = Instant::now() + top.delay;
        }
    }
}

impl Top {
    fn new(delay: Duration) -> Self {
        Self {
            now: None,
            entries: Vec::new(),
            before: HashMap::new(),
            asked: None,
            list: List::Services,
            column: 1,
            reverse: false,
            idle: true,
            offset: 0,
            delay,
            help: false,
            typed: None,
            trouble: None,
        }
    }

    /// Takes an answer in: rates are since the one before.
    fn take(&mut self, summary: Summary, at: Instant) {
        let seconds = self.asked.replace(at).map(|before| (at - before).as_secs_f64());
        self.trouble = None;
        let mut counts = HashMap::new();
        let mut rates = |name: String, open: u32, now: [u64; 3]| {
            let rate = |n: usize| match (seconds, self.before.get(&name)) {
                (Some(seconds), Some(before)) if seconds > 0.0 => {
                    now[n].saturating_sub(before[n]) as f64 / seconds
                }
                _ => 0.0,
            };
            let numbers = [f64::from(open), rate(0), rate(1), rate(2)];
            counts.insert(name, now);
            numbers
        };
        // Both lists, so that rates are there when the other one is looked at.
        let services = summary.services.iter().map(|it| Entry {
            name: it.name.clone(),
            more: it.addresses.join(" "),
            state: format!("{}/{}", it.backends_up, it.backends),
            numbers: rates(
                it.name.clone(),
                it.active,
                [it.connections, it.received_bytes, it.sent_bytes],
            ),
            cause: it.troubles.first().cloned().unwrap_or_default(),
        });
        let services: Vec<Entry> = services.collect();
        let backends = summary.backends.iter().map(|it| Entry {
            name: it.name.clone().unwrap_or_else(|| it.address.clone()),
            more: it.service.clone(),
            state: it.state.clone(),
            numbers: rates(
                format!("{} {}", it.service, it.address),
                it.active,
                // From the client's side, as for services.
                [it.connections, it.sent_bytes, it.received_bytes],
            ),
            cause: it.cause.clone().unwrap_or_default(),
        });
        let backends: Vec<Entry> = backends.collect();
        self.entries = match self.list {
            List::Services => services,
            List::Backends => backends,
        };
        self.before = counts;
        self.now = Some(summary);
    }

    /// The entries as they are to be shown.
    fn sorted(&self) -> Vec<&Entry> {
        let busy = |entry: &&Entry| self.idle || entry.numbers.iter().any(|number| *number > 0.0);
        let mut entries: Vec<&Entry> = self.entries.iter().filter(busy).collect();
        entries.sort_by(|a, b| {
            let by_name = || a.name.cmp(&b.name).then_with(|| a.more.cmp(&b.more));
            match self.column {
                4 => by_name(),
                n => b.numbers[n].total_cmp(&a.numbers[n]).then_with(by_name),
            }
        });
        if self.reverse {
            entries.reverse();
        }
        entries
    }

    fn key(&mut self, key: KeyEvent) -> Wish {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Wish::End;
        }
        if std::mem::take(&mut self.help) {
            return Wish::Nothing;
        }
        if let Some(typed) = &mut self.typed {
            match key.code {
                KeyCode::Char(c) if c.is_ascii_digit() || c == '.' => typed.push(c),
                KeyCode::Backspace => _ = typed.pop(),
                KeyCode::Enter => {
                    let seconds =
                        typed.parse().ok().and_then(|it| Duration::try_from_secs_f64(it).ok());
                    self.delay = seconds.unwrap_or(self.delay).max(SHORTEST);
                    self.typed = None;
                    return Wish::Ask;
                }
                _ => self.typed = None,
            }
            return Wish::Nothing;
        }
        let last = self.entries.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::End,
            KeyCode::Char(' ') | KeyCode::Enter => return Wish::Ask,
            KeyCode::Tab | KeyCode::Char('b') => {
                self.list = match self.list {
                    List::Services => List::Backends,
                    List::Backends => List::Services,
                };
                self.offset = 0;
                return Wish::Ask;
            }
            KeyCode::Char('<') => self.column = (self.column + COLUMNS.len() - 1) % COLUMNS.len(),
            KeyCode::Char('>') => self.column = (self.column + 1) % COLUMNS.len(),
            KeyCode::Char('R') => self.reverse = !self.reverse,
            KeyCode::Char('i') => self.idle = !self.idle,
            KeyCode::Char('d' | 's') => self.typed = Some(String::new()),
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Up => self.offset = self.offset.saturating_sub(1),
            KeyCode::Down => self.offset = (self.offset + 1).min(last),
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(20),
            KeyCode::PageDown => self.offset = (self.offset + 20).min(last),
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = last,
            _ => {}
        }
        Wish::Nothing
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let Some(summary) = &self.now else { return };
        let head = self.head(summary);
        let heights = [Constraint::Length(head.len() as u16), Constraint::Min(1)];
        let [above, below] = Layout::vertical(heights).areas(frame.area());
        frame.render_widget(Paragraph::new(head), above);
        self.draw_table(frame, below);
        if self.help {
            let height = (HELP.lines().count() as u16).min(below.height);
            let area = Rect { height, ..below };
            frame.render_widget(Clear, area);
            frame.render_widget(Paragraph::new(HELP), area);
        }
    }

    fn head<'s>(&'s self, summary: &'s Summary) -> Vec<Line<'s>> {
        let status = &summary.status;
        let up = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
        let sum = |n: usize| self.entries.iter().map(|entry| entry.numbers[n]).sum::<f64>();
        let mut lines = vec![
            Line::from(format!(
                "fairway {}, up {up}, snapshot {}, every {:?}",
                status.version, status.generation, self.delay
            )),
            Line::from(format!(
                "{} services, {} backends, {} down; {} connections, {} UDP sessions; {:.0} connections/s, \
                 {}/s in, {}/s out",
                status.services,
                status.backends,
                status.backends_down,
                status.connections,
                status.udp_sessions,
                sum(1),
                bytes(sum(2) as u64),
                bytes(sum(3) as u64),
            )),
        ];
        let warn = Style::new().fg(Color::Red);
        let problems = status.troubles.iter().chain(&status.config.problems).chain(&self.trouble);
        lines.extend(problems.take(3).map(|text| Line::styled(text.as_str(), warn)));
        match &self.typed {
            Some(typed) => {
                lines.push(Line::from(format!("seconds from one answer to the next: {typed}_")))
            }
            None => lines.push(Line::from("")),
        }
        lines
    }

    fn draw_table(&self, frame: &mut Frame<'_>, area: Rect) {
        let chosen = Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD);
        let title = |n: usize| {
            let style =
                if n == self.column { chosen } else { Style::new().add_modifier(Modifier::BOLD) };
            Cell::from(Line::styled(COLUMNS[n], style).right_aligned())
        };
        let (first, second) = match self.list {
            List::Services => ("SERVICE", "ADDRESSES"),
            List::Backends => ("BACKEND", "SERVICE"),
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let name = Style::new().add_modifier(Modifier::BOLD);
        let name = if self.column == 4 { chosen } else { name };
        let head = Row::new([
            title(0),
            title(1),
            title(2),
            title(3),
            Cell::from(Line::styled("UP", bold)),
            Cell::from(Line::styled(first, name)),
            Cell::from(Line::styled(second, bold)),
            Cell::from(Line::styled("WHY", bold)),
        ]);
        let rows = self.sorted().into_iter().skip(self.offset).map(|entry| {
            let [open, made, read, sent] = entry.numbers;
            let number = |text: String| Cell::from(Line::from(text).right_aligned());
            let colour = match entry.state.as_str() {
                "down" | "ejected" => Some(Color::Red),
                "draining" | "starting" | "removed" => Some(Color::Yellow),
                state if state.starts_with("0/") => Some(Color::Red),
                _ => None,
            };
            let style = colour.map_or(Style::new(), |colour| Style::new().fg(colour));
            Row::new([
                number(format!("{open:.0}")),
                number(format!("{made:.1}")),
                number(bytes(read as u64)),
                number(bytes(sent as u64)),
                Cell::from(Span::styled(entry.state.clone(), style)),
                Cell::from(entry.name.clone()),
                Cell::from(entry.more.clone()),
                Cell::from(entry.cause.clone()),
            ])
        });
        // As wide as what they have, so that no port loses a digit; the reasons take what is left.
        let longest = |text: fn(&Entry) -> &str, most: usize| {
            let widths = self.entries.iter().map(|entry| text(entry).chars().count());
            Constraint::Length(widths.max().unwrap_or(0).clamp(8, most) as u16)
        };
        let widths = [
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(9),
            longest(|entry| &entry.name, 32),
            longest(|entry| &entry.more, 48),
            Constraint::Fill(1),
        ];
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn summary(connections: [u64; 2]) -> Summary {
        let service = |name: &str, connections: u64, up: u32| {
            json!({"name": name, "addresses": ["192.0.2.1:80"], "protocol": "TCP", "backends": 2, "backendsUp": up,
                "tableSlots": 0, "tableGeneration": 0, "tableBuildMicroseconds": 0, "panic": false, "active": 3,
                "connections": connections, "receivedBytes": connections * 1024, "sentBytes": 0, "ends": {},
                "retries": {}, "limitsHit": {}, "receivedDatagrams": 0, "sentDatagrams": 0,
                "droppedDatagrams": {}, "writtenAt": "", "troubles": []})
        };
        let backend = json!({"service": "web/80", "address": "10.0.0.1:80", "name": null, "zone": null, "weight": 1,
            "group": 0, "state": "down", "cause": "checks say: refused", "active": 0, "connections": 0,
            "receivedBytes": 0, "sentBytes": 0, "failures": {}, "transitions": 0});
        let status = json!({"version": "1.2.3", "pid": 1, "uptimeSeconds": 61, "ready": true, "stopping": false,
            "generation": 7, "generationInUse": 7, "services": 2, "backends": 4, "backendsDown": 1, "checks": 0,
            "connections": 6, "udpSessions": 0, "perBackendMetrics": true, "uringFeatures": [], "workers": [],
            "config": {"path": "", "loadedAt": 0, "problems": ["line 3 is wrong"], "waitingForRestart": []},
            "budgets": crate::admin::views::Budgets::default(), "troubles": ["no descriptors left"]});
        let announce = crate::announce::AnnounceView::default();
        serde_json::from_value(json!({"status": status, "more": 0, "announce": announce, "history": [],
            "services": [service("dns/53", connections[0], 2), service("web/80", connections[1], 0)],
            "backends": [backend], "connectBounds": [], "connectCounts": [], "drops": {}}))
        .unwrap()
    }

    fn screen(top: &Top) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 12)).unwrap();
        terminal.draw(|frame| top.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(100);
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
    }

    fn press(top: &mut Top, keys: &str) -> Wish {
        keys.chars().fold(Wish::Nothing, |_, c| {
            let code = match c {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                c => KeyCode::Char(c),
            };
            top.key(KeyEvent::new(code, KeyModifiers::NONE))
        })
    }

    #[test]
    fn the_busiest_come_first_and_keys_do_as_in_top() {
        let mut top = Top::new(Duration::from_secs(2));
        let start = Instant::now();
        top.take(summary([100, 100]), start);
        top.take(summary([110, 300]), start + Duration::from_secs(2));
        let shown = screen(&top);
        for part in [
            "fairway 1.2.3, up 1m 1s",
            "no descriptors left",
            "line 3 is wrong",
            "105 connections/s",
            "100.0 KiB",
        ] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
        let first = |top: &Top| top.sorted().first().map(|entry| entry.name.clone()).unwrap();
        assert_eq!(first(&top), "web/80");
        press(&mut top, "R");
        assert_eq!(first(&top), "dns/53");
        press(&mut top, "R<<");
        assert_eq!((top.column, first(&top)), (4, "dns/53".into()), "by name");
        assert_eq!(press(&mut top, "d0.5\n"), Wish::Ask);
        assert_eq!(top.delay, Duration::from_millis(500));
        press(&mut top, "?");
        assert!(screen(&top).contains("this help"));
        press(&mut top, "x");
        assert!(!screen(&top).contains("this help"));
        assert_eq!(press(&mut top, "\t"), Wish::Ask);
        top.take(summary([110, 300]), start + Duration::from_secs(3));
        let shown = screen(&top);
        assert!(shown.contains("BACKEND") && shown.contains("checks say: refused"), "{shown}");
        press(&mut top, "i");
        assert!(top.sorted().is_empty(), "nothing of it moves");
        assert_eq!(press(&mut top, "q"), Wish::End);
    }

    #[test]
    fn small_screens_break_nothing() {
        let mut top = Top::new(Duration::from_secs(2));
        top.take(summary([1, 2]), Instant::now());
        top.help = true;
        for (width, height) in [(1, 1), (20, 3), (80, 2)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| top.draw(frame)).unwrap();
        }
    }
}
