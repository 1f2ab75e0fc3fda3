//! What a worker does when it is told to.

use fairway_core::{EndReason, Protocol, Snapshot};

use super::{Farewell, Parts, Worker};
use crate::command::Command;
use crate::packets::{Packets, Turn};

impl Worker<'_> {
    pub(super) fn obey(&mut self, snapshot: &Snapshot) {
        let mut count = [0u8; 8];
        // The value only says "look"; a failed read leaves it set, and we look again.
        let _ = rustix::io::read(&self.wake, &mut count);
        self.arm_wake();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Listen { key, socket, protocol: Protocol::Udp, vip } => {
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.listen(key, socket, vip, cx);
                }
                Command::Listen { key, socket, vip, .. } => self.listen(key, socket, vip),
                Command::Unlisten { key } => {
                    self.unlisten(Farewell::Serve, |listener| listener.key == key, snapshot);
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.unlisten(|listener| listener == key, cx);
                }
                Command::List { filter, reply } => {
                    let sessions = self.sessions.iter().filter(|session| session.used);
                    let streams = sessions.filter_map(|session| session.listed(self.now));
                    let all = streams.chain(self.datagrams.listed(self.now));
                    let mut wanted: Vec<_> = all.filter(|open| filter.wants(open)).collect();
                    wanted.sort_unstable_by_key(|open| std::cmp::Reverse(open.age));
                    wanted.truncate(filter.most);
                    // Nobody waits any more when the caller has gone.
                    let _ = reply.send(wanted);
                }
                Command::Flows { filter, reply } => match &mut self.packets {
                    Some(packets) => packets.list(filter, reply),
                    None => _ = reply.send(Vec::new()),
                },
                Command::Capture(capture) => {
                    if let Some(packets) = &mut self.packets {
                        packets.capture(capture);
                    }
                }
                Command::Talkers { service, reply } => {
                    // Nobody waits any more when the caller has gone.
                    let _ =
                        reply.send(self.parts.talkers.get(&service).cloned().unwrap_or_default());
                }
                Command::Attach(port) => {
                    if let Some(packets) = &mut self.packets {
                        packets.attach(port, &mut self.parts.ring);
                    }
                }
                Command::Detach(number) => {
                    if let Some(packets) = &mut self.packets {
                        packets.detach(number, &mut self.parts.ring);
                    }
                }
                Command::AttachCards(polled, cards) => {
                    if let Some(packets) = &mut self.packets {
                        packets.attach_cards(polled, cards);
                    }
                }
                Command::ReleaseCards { reply } => {
                    if let Some(packets) = &mut self.packets {
                        packets.release_cards(&mut self.parts.ring);
                    }
                    // Nobody waits any more when that took too long.
                    let _ = reply.send(());
                }
                Command::HoldPackets => self.packets.iter_mut().for_each(Packets::hold),
                Command::CarryPackets { left, reply } => {
                    let Parts { ring, shared, talkers, .. } = &mut self.parts;
                    let turn = Turn { ring, snapshot, shared, talkers, now: self.now };
                    let adopted = self.packets.as_mut().map(|it| it.begin(left.as_ref(), &turn));
                    // Nobody waits any more when that took too long.
                    let _ = reply.send(adopted.unwrap_or_default());
                }
                Command::EndPackets { until, last, reply } => {
                    let Parts { ring, shared, talkers, .. } = &mut self.parts;
                    let turn = Turn { ring, snapshot, shared, talkers, now: self.now };
                    if let Some(packets) = &mut self.packets {
                        packets.end(until, last, turn);
                    }
                    // As above.
                    let _ = reply.send(());
                }
                Command::ResumePackets => self.packets.iter_mut().for_each(Packets::go_on),
                Command::StopAccepting => {
                    self.unlisten(Farewell::Serve, |_| true, snapshot);
                    self.datagrams.refuse();
                    self.packets.iter_mut().for_each(Packets::refuse);
                }
                Command::PauseDatagrams { reply } => {
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.pause(reply, cx);
                }
                Command::AdoptDatagrams { sessions, snapshot } => {
                    let cx = &mut self.parts.cx(0, self.now, &snapshot);
                    self.datagrams.adopt(sessions, cx);
                }
                Command::ResumeDatagrams => {
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.resume(cx);
                }
                // They are armed again at once, and look first.
                Command::LookForClients => self.disarm_listeners(),
                Command::Leave => {
                    self.unlisten(Farewell::Leave, |_| true, snapshot);
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.leave(cx);
                }
                Command::EndBackends { backends, reason } => {
                    self.end(reason, snapshot, |session| session.is_on(&backends));
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.end_backends(&backends, reason, cx);
                    if let Some(packets) = &mut self.packets {
                        packets.cut(backends, reason);
                    }
                }
                Command::Stop => {
                    self.stopping = true;
                    self.unlisten(Farewell::Serve, |_| true, snapshot);
                    self.end(EndReason::Shutdown, snapshot, |_| true);
                    let cx = &mut self.parts.cx(0, self.now, snapshot);
                    self.datagrams.end_all(EndReason::Shutdown, cx);
                    self.datagrams.unlisten(|_| true, cx);
                }
            }
        }
    }
}
