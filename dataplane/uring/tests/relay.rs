//! A real worker between real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fixture;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use fairway_core::{EndReason, FailureCause, Protocol, RetryCause};
use fairway_uring::{
    Clock, Command, Event, Feature, Features, ListenerKey, Shared, WorkerHandle, open_listener,
};
use socket2::SockRef;

use fixture::{Proxy, SECOND, policy, read_error};

/// A server on a port of its own that treats each connection with `serve`, in a thread each.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

fn echo() -> SocketAddr {
    server(|mut stream| {
        let mut buffer = [0; 65_536];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    })
}

/// An address on which nobody listens, nor will as long as the tests run: it stays bound.
fn refusing() -> SocketAddr {
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&any.into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    addr
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Every shape in which kernels run the relay.
fn shapes() -> [&'static [Feature]; 3] {
    [&[], &[Feature::Splice], &Feature::ALL]
}

#[test]
fn bytes_come_back() {
    for disable in shapes() {
        let proxy = Proxy::start(&[echo()], policy(), disable);
        let mut client = proxy.connect();
        for round in 0..100u32 {
            client.write_all(&round.to_be_bytes()).unwrap();
            let mut got = [0; 4];
            client.read_exact(&mut got).unwrap();
            assert_eq!(got, round.to_be_bytes());
        }
        drop(client);
        assert_eq!(proxy.end(), EndReason::Client, "{disable:?}");
        let totals = proxy.state.counters.totals();
        assert_eq!((totals.rx_bytes, totals.tx_bytes), (400, 400), "{disable:?}");
    }
}

/// Bytes with a pattern that shows loss, doubling and swapping.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

#[test]
fn long_transfers_arrive_whole_both_ways_at_once() {
    for disable in shapes() {
        let proxy = Proxy::start(&[echo()], policy(), disable);
        let mut client = proxy.connect();
        let mut writer = client.try_clone().unwrap();
        let sent = pattern(8 << 20);
        let expected = sent.clone();
        let sender = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert_eq!(got.len(), expected.len(), "{disable:?}");
        assert!(got == expected, "{disable:?}: bytes differ");
        assert_eq!(proxy.end(), EndReason::Client, "{disable:?}");
    }
}

#[test]
fn half_close_passes_in_both_orders() {
    for disable in shapes() {
        // The backend answers only after the client's end has come through.
        let after_end = server(|mut stream| {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
        let proxy = Proxy::start(&[after_end], policy(), disable);
        let mut client = proxy.connect();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"hello", "{disable:?}");
        assert_eq!(proxy.end(), EndReason::Client, "{disable:?}");
        drop(proxy);

        // The backend ends first and still listens.
        let (sender, received) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let ends_first = server(move |mut stream| {
            stream.write_all(b"bye").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            sender.lock().unwrap().send(got).unwrap();
        });
        let proxy = Proxy::start(&[ends_first], policy(), disable);
        let mut client = proxy.connect();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"bye", "{disable:?}");
        client.write_all(b"late").unwrap();
        drop(client);
        assert_eq!(received.recv_timeout(10 * SECOND).unwrap(), b"late", "{disable:?}");
        assert_eq!(proxy.end(), EndReason::Backend, "{disable:?}");
    }
}

#[test]
fn resets_pass_both_ways() {
    for disable in shapes() {
        let resets = server(|mut stream| {
            let mut one = [0; 1];
            stream.read_exact(&mut one).unwrap();
            reset(stream);
        });
        let proxy = Proxy::start(&[resets], policy(), disable);
        let mut client = proxy.connect();
        client.write_all(b"x").unwrap();
        let error = read_error(&mut client);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{disable:?}");
        assert_eq!(proxy.end(), EndReason::BackendReset, "{disable:?}");
        drop(proxy);

        let (sender, seen) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let reads = server(move |mut stream| {
            stream.write_all(b"x").unwrap();
            let error = read_error(&mut stream);
            sender.lock().unwrap().send(error.kind()).unwrap();
        });
        let proxy = Proxy::start(&[reads], policy(), disable);
        let mut client = proxy.connect();
        client.read_exact(&mut [0; 1]).unwrap();
        reset(client);
        let kind = seen.recv_timeout(10 * SECOND).unwrap();
        assert_eq!(kind, ErrorKind::ConnectionReset, "{disable:?}");
        assert_eq!(proxy.end(), EndReason::ClientReset, "{disable:?}");
    }
}

#[test]
fn what_came_before_a_reset_arrives() {
    for disable in shapes() {
        let backend = server(|mut stream| {
            stream.write_all(b"partial").unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
            reset(stream);
        });
        let proxy = Proxy::start(&[backend], policy(), disable);
        let mut client = proxy.connect();
        let mut got = [0; 7];
        client.read_exact(&mut got).unwrap();
        client.write_all(b"go").unwrap();
        assert_eq!(&got, b"partial");
        let error = read_error(&mut client);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{disable:?}");
        assert_eq!(proxy.end(), EndReason::BackendReset, "{disable:?}");
    }
}

#[test]
fn refused_connects_go_to_the_next_candidate() {
    let proxy = Proxy::start(&[refusing(), refusing(), echo()], policy(), &[]);
    for _ in 0..6 {
        let mut client = proxy.connect();
        client.write_all(b"ping").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
    }
    assert_eq!(proxy.members[2].counters.totals().connections, 6);
    let refused = proxy.members[0].counters.totals().failures[FailureCause::Refused as usize];
    assert!(refused > 0, "round robin met the refusing backend");
    assert!(proxy.retries(RetryCause::Refused) >= refused);
}

#[test]
fn a_failing_backend_is_reported_for_ejection() {
    let proxy = Proxy::start(&[refusing()], policy(), &[]);
    for _ in 0..3 {
        let mut client = proxy.connect();
        let error = read_error(&mut client);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let events: Vec<_> = (0..4).map(|_| proxy.end_or_ejection()).collect();
    assert_eq!(events, ["connect_failed", "connect_failed", "refused 3", "connect_failed"]);
}

impl Proxy {
    fn end_or_ejection(&self) -> String {
        match self.events.recv_timeout(10 * SECOND).expect("an event") {
            Event::ConnectionEnded(record) => record.reason.label().into(),
            Event::BackendFailed { cause, streak, .. } => format!("{} {streak}", cause.label()),
            other => panic!("{other:?}"),
        }
    }
}

/// An address that never answers: a listener whose queue is full.
fn black_hole() -> (SocketAddr, Vec<TcpStream>, socket2::Socket) {
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        held.push(stream);
    }
    (addr, held, socket)
}

#[test]
fn a_black_hole_costs_one_connect_timeout_and_no_client() {
    let (hole, _held, _socket) = black_hole();
    let mut policy = policy();
    policy.timeouts.connect = Duration::from_millis(100);
    let proxy = Proxy::start(&[hole, echo()], policy, &[]);
    for _ in 0..2 {
        let mut client = proxy.connect();
        client.write_all(b"ping").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
    }
    assert_eq!(proxy.retries(RetryCause::Timeout), 1);
}

#[test]
fn hedging_overtakes_a_slow_candidate() {
    let (hole, _held, _socket) = black_hole();
    let mut policy = policy();
    policy.timeouts.connect = 5 * SECOND;
    policy.retry.hedge_after = Some(Duration::from_millis(20));
    let proxy = Proxy::start(&[hole, echo()], policy, &[]);
    let start = Instant::now();
    for _ in 0..2 {
        let mut client = proxy.connect();
        client.write_all(b"ping").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
    }
    assert!(start.elapsed() < 4 * SECOND, "waited for the slow one");
    assert_eq!(proxy.retries(RetryCause::Hedge), 1);
}

#[test]
fn a_reset_before_the_reply_is_replayed_when_asked_for() {
    for ends_by_reset in [true, false] {
        let bad = server(move |mut stream| {
            let mut got = [0; 3];
            stream.read_exact(&mut got).unwrap();
            if ends_by_reset {
                reset(stream);
            }
        });
        let mut policy = policy();
        policy.retry.on_reset_before_reply = true;
        let proxy = Proxy::start(&[bad, echo()], policy, &[]);
        for _ in 0..4 {
            let mut client = proxy.connect();
            client.write_all(b"request").unwrap();
            let mut got = [0; 7];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"request");
        }
        assert_eq!(proxy.retries(RetryCause::ResetBeforeReply), 2, "by reset: {ends_by_reset}");
    }
}

#[test]
fn a_backend_that_ends_before_anything_was_said_is_replaced() {
    for ends_by_reset in [true, false] {
        let bad = server(move |stream| {
            if ends_by_reset {
                reset(stream);
            }
        });
        let (sender, reached) = std::sync::mpsc::channel();
        let good = server(move |mut stream| {
            sender.send(()).unwrap();
            let mut got = [0; 7];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
        let proxy = Proxy::start(&[bad, good], policy(), &[]);
        for _ in 0..4 {
            let mut client = proxy.connect();
            // The client speaks when the end has come and gone.
            reached.recv_timeout(10 * SECOND).unwrap();
            client.write_all(b"request").unwrap();
            client.read_exact(&mut [0; 7]).unwrap();
        }
        assert_eq!(proxy.retries(RetryCause::Closed), 2, "by reset: {ends_by_reset}");
    }
}

#[test]
fn an_end_without_a_word_stands_when_nobody_else_is_left() {
    let proxy = Proxy::start(&[server(drop), server(drop)], policy(), &[]);
    let said = proxy.connect().read_to_end(&mut Vec::new());
    assert_eq!(said.unwrap(), 0, "as the backends ended it");
    assert_eq!(proxy.retries(RetryCause::Closed), 1);
}

#[test]
fn more_than_is_kept_is_not_replayed() {
    let bad = server(|mut stream| {
        let mut total = 0;
        let mut buffer = [0; 65_536];
        while total < 200_000 {
            match stream.read(&mut buffer) {
                Ok(n @ 1..) => total += n,
                _ => return,
            }
        }
        reset(stream);
    });
    let mut policy = policy();
    policy.retry.on_reset_before_reply = true;
    let proxy = Proxy::start(&[bad, echo()], policy, &[]);
    // Round robin starts at the lower port, which may be either's: each has its turn.
    let resets = (0..2).filter(|_| {
        let mut client = proxy.connect();
        client.write_all(&pattern(200_000)).unwrap();
        client.read_exact(&mut [0; 1]).is_err()
    });
    assert_eq!(resets.count(), 1);
    assert_eq!(proxy.retries(RetryCause::ResetBeforeReply), 0);
}

#[test]
fn a_slow_reader_stops_its_sender() {
    for disable in shapes() {
        let (sender, wrote) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let fast = server(move |mut stream| {
            stream.set_write_timeout(Some(SECOND / 2)).unwrap();
            let mut total = 0usize;
            while let Ok(n) = stream.write(&[1; 65_536]) {
                total += n;
            }
            sender.lock().unwrap().send(total).unwrap();
        });
        let proxy = Proxy::start(&[fast], policy(), disable);
        let client = proxy.connect();
        SockRef::from(&client).set_recv_buffer_size(65_536).unwrap();
        let total = wrote.recv_timeout(10 * SECOND).unwrap();
        assert!(total < 32 << 20, "{disable:?}: {total} bytes went nowhere");
        let used = proxy.worker.stats.buffers_used.load(Relaxed);
        assert!(used <= 128 + 16, "{disable:?}: {used} buffers in use");
        drop(client);
    }
}

#[test]
fn idle_and_half_closed_connections_time_out() {
    let silent = server(|mut stream| {
        let mut buffer = [0; 16];
        while let Ok(1..) = stream.read(&mut buffer) {}
        thread::sleep(10 * SECOND);
    });
    let mut policy = policy();
    policy.timeouts.idle = Duration::from_millis(300);
    policy.timeouts.half_closed = Duration::from_millis(100);
    let proxy = Proxy::start(&[silent], policy, &[]);
    let mut client = proxy.connect();
    let error = read_error(&mut client);
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.end(), EndReason::IdleTimeout);
    let mut client = proxy.connect();
    client.shutdown(Shutdown::Write).unwrap();
    let error = read_error(&mut client);
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.end(), EndReason::HalfClosedTimeout);
}

#[test]
fn nobody_to_serve_is_a_reset() {
    let proxy = Proxy::start(&[], policy(), &[]);
    let mut client = proxy.connect();
    assert_eq!(read_error(&mut client).kind(), ErrorKind::ConnectionReset);
    let ends = proxy.state.counters.totals().ends;
    assert_eq!(ends[EndReason::NoBackend as usize], 1);
}

#[test]
fn lists_and_limits_refuse() {
    let mut denied = policy();
    denied.deny = ["127.0.0.0/8".parse().unwrap()].into_iter().collect();
    let proxy = Proxy::start(&[echo()], denied, &[]);
    let refused = |proxy: &Proxy| {
        let mut client = proxy.connect();
        let _ = client.write_all(b"ping");
        client.read_exact(&mut [0; 4]).is_err()
    };
    assert!(refused(&proxy));
    assert_eq!(proxy.state.counters.totals().ends[EndReason::Denied as usize], 1);
    drop(proxy);

    let mut limited = policy();
    limited.limits.client_connections = Some(2);
    let proxy = Proxy::start(&[echo()], limited, &[]);
    let serve = || {
        let mut client = proxy.connect();
        client.write_all(b"ping").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        client
    };
    let (first, _second) = (serve(), serve());
    assert!(refused(&proxy));
    drop(first);
    assert_eq!((proxy.end(), proxy.end()), (EndReason::Limited, EndReason::Client));
    let _third = serve();
}

#[test]
fn connections_end_when_told() {
    let proxy = Proxy::start(&[echo()], policy(), &[]);
    let mut client = proxy.connect();
    client.write_all(b"ping").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    let backends = vec![proxy.members[0].id];
    proxy.worker.send(Command::EndBackends { backends, reason: EndReason::DrainTimeout });
    assert_eq!(read_error(&mut client).kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.end(), EndReason::DrainTimeout);
}

#[test]
fn a_worker_that_panics_says_so() {
    let (sender, events) = crossbeam_channel::unbounded();
    let sink = Box::new(move |event| match event {
        Event::ConnectionEnded(_) => panic!("a bug in whoever listens"),
        event => sender.send(event).is_ok(),
    });
    let mut proxy = Proxy::start(&[echo()], policy(), &[]);
    let shared = Arc::new(Shared::new(proxy.shared.settings, Clock, (100, [1, 2, 3, 4]), sink));
    let features = Features::detect(&[]).unwrap();
    let reader = proxy.publisher.reader();
    let mut worker = WorkerHandle::spawn(0, None, shared, reader, features, None).unwrap();
    let socket = open_listener(proxy.vip, Protocol::Tcp).unwrap();
    proxy.worker.send(Command::StopAccepting);
    let protocol = Protocol::Tcp;
    worker.send(Command::Listen { key: ListenerKey(9), socket, protocol, vip: Some(proxy.vip) });
    // The first worker may still take one.
    let died = loop {
        drop(TcpStream::connect(proxy.vip));
        if let Ok(event) = events.recv_timeout(SECOND / 10) {
            break event;
        }
    };
    worker.join();
    let Event::WorkerEnded { error: Some(error), .. } = died else { panic!("{died:?}") };
    assert_eq!(error, "panicked: a bug in whoever listens");
    // What the dead worker had open is lost with it; the process ends.
    std::mem::forget(proxy);
}

#[test]
fn a_client_that_sends_byte_by_byte_pins_few_buffers() {
    let silent = server(|mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer) {}
    });
    let mut policy = policy();
    policy.retry.on_reset_before_reply = true;
    let proxy = Proxy::start(&[silent], policy, &[]);
    let mut client = proxy.connect();
    client.set_nodelay(true).unwrap();
    for _ in 0..600 {
        client.write_all(b"x").unwrap();
        thread::sleep(Duration::from_micros(200));
    }
    let used = proxy.worker.stats.buffers_used.load(Relaxed);
    assert!(used <= 128 + 8, "{used} buffers for one client");
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = holder.local_addr().unwrap();
    let error = open_listener(taken, Protocol::Tcp).unwrap_err().to_string();
    assert!(error.contains(&format!("sport = :{}", taken.port())), "{error}");
    let free: SocketAddr = (IpAddr::from([127, 255, 0, 9]), 0).into();
    assert!(open_listener(free, Protocol::Tcp).is_ok(), "an address that is not configured");
}
