//! Messages between peers, and the boundaries in them.

#![no_main]

use baton_fuzz::seed;
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::message::{Assign, BlockBytes, Counts, Device, Fault, FileAnswer, Message, RoomState, Times};
use baton_protocol::run::{ModelSource, Settings};
use baton_protocol::{Generation, MicroBatch, PeerId, StageIndex, Step};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let (generation, step, micro_batch) = (Generation(1), Step(2), MicroBatch(3));
    let tensor = |precision| {
        let tensor = Boundary::encode(&[1.0, -2.0, 0.5, 1e-9], [1, 2, 2], precision).expect("four numbers");
        tensor.with_lengths(vec![2])
    };
    let states = || vec![BlockBytes { block: 1, bytes: vec![1, 2, 3] }];
    let device = || Device { name: "a phone".into(), backend: "CPU".into() };
    [
        Message::Hello(device()),
        Message::Heartbeat,
        Message::Assign(Box::new(Assign {
            generation,
            stage: StageIndex(0),
            stages: 2,
            blocks: 0..2,
            prev: PeerId::HOST,
            next: PeerId(2),
            prev_trains: false,
            step,
            settings: Settings::default(),
            source: ModelSource::Host,
            config: "{}".into(),
            manifest: vec![0; 8],
            states: states(),
        })),
        Message::Forward { generation, step, micro_batch, tensor: tensor(Precision::F32) },
        Message::Backward { generation, step, micro_batch, tensor: Some(tensor(Precision::F16)) },
        Message::Apply { generation, step, lr: 1e-3, scale: 0.5 },
        Message::Applied { generation, step, states: states() },
        Message::Infer { generation, request: 7, tensor: tensor(Precision::F16) },
        Message::Room(RoomState::Paused),
        Message::ChunkRead { id: 1, hash: [9; 32] },
        Message::File { id: 1, answer: FileAnswer::Bytes(vec![1; 16]) },
        Message::StepDone { generation, step, grad_sum_of_squares: 0.5, times: Times::default() },
        Message::Warmed { blocks: 0..2 },
        Message::Ask { generation },
        Message::Status { generation, step, counts: Counts::default() },
        Message::Failed { generation, reason: "no memory".into(), fault: Fault::Device },
    ]
    .map(|message| message.to_bytes())
    .into()
}

fuzz_target!(init: seed("message", seeds()), |bytes: &[u8]| {
    let Ok(message) = Message::from_bytes(bytes) else { return };
    let again = message.to_bytes();
    // Compared as bytes: a NaN is not equal to itself.
    assert_eq!(Message::from_bytes(&again).expect("what was written").to_bytes(), again);
    let _ = (message.lane(), format!("{message:?}"));
    match message {
        Message::Forward { tensor, .. }
        | Message::Infer { tensor, .. }
        | Message::Backward { tensor: Some(tensor), .. } => {
            let _ = tensor.lengths();
            if let Ok(values) = tensor.decode() {
                assert!(values.iter().all(|value| value.is_finite()));
                let count: u64 = tensor.shape().iter().map(|dim| u64::from(*dim)).product();
                assert_eq!(values.len() as u64, count);
            }
        }
        Message::Assign(assign) => {
            let _ = assign.check();
        }
        Message::Hello(device) | Message::Welcome(device) => assert!(device.checked().name.chars().count() <= 40),
        _ => {}
    }
});
