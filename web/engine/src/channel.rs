//! An RTCDataChannel as a channel of frames, with handlers that are attached before it has a number.

use baton_transport::{Channel, PortId};
use gloo::events::EventListener;
use js_sys::{ArrayBuffer, Uint8Array};
use std::cell::RefCell;
use std::rc::Rc;
use wasm_bindgen::JsCast;
use web_sys::{MessageEvent, RtcDataChannel, RtcDataChannelState, RtcDataChannelType};

/// The channel says that its queue is short at this many bytes; measured enough to keep a fast link busy.
const LOW_WATER: u32 = 256 * 1024;

/// What a channel has to say.
pub(crate) enum Signal {
    Frame(Vec<u8>),
    Writable,
    Closed,
}

type Report = Rc<dyn Fn(PortId, Signal)>;

/// Signals wait until the channel has a number.
enum Route {
    Waiting(Vec<Signal>),
    Known(PortId),
}

/// A channel that is listened to.
pub(crate) struct Handlers {
    channel: RtcDataChannel,
    route: Rc<RefCell<Route>>,
    report: Report,
    listeners: Vec<EventListener>,
}

impl Handlers {
    /// Listens to everything that the channel says.
    pub(crate) fn attach(channel: RtcDataChannel, report: impl Fn(PortId, Signal) + 'static) -> Self {
        channel.set_binary_type(RtcDataChannelType::Arraybuffer);
        channel.set_buffered_amount_low_threshold(LOW_WATER);
        let route = Rc::new(RefCell::new(Route::Waiting(Vec::new())));
        let report: Report = Rc::new(report);
        let on = |name: &'static str, signal: fn(&web_sys::Event) -> Option<Signal>| {
            let (route, report) = (route.clone(), report.clone());
            EventListener::new(&channel, name, move |event| {
                let Some(signal) = signal(event) else { return };
                let id = match &mut *route.borrow_mut() {
                    Route::Waiting(signals) => {
                        signals.push(signal);
                        return;
                    }
                    Route::Known(id) => *id,
                };
                report(id, signal);
            })
        };
        let listeners = vec![
            on("message", |event| {
                let data = event.dyn_ref::<MessageEvent>()?.data();
                // Text is not of the protocol; an empty frame is refused by the link.
                let bytes =
                    data.dyn_into::<ArrayBuffer>().map_or(Vec::new(), |data| Uint8Array::new(&data).to_vec());
                Some(Signal::Frame(bytes))
            }),
            on("open", |_| Some(Signal::Writable)),
            on("bufferedamountlow", |_| Some(Signal::Writable)),
            on("close", |_| Some(Signal::Closed)),
            on("error", |_| Some(Signal::Closed)),
        ];
        Self { channel, route, report, listeners }
    }

    /// Gives the channel its number, and passes on what it has said so far.
    pub(crate) fn report_as(self, id: PortId) -> RtcChannel {
        let Self { channel, route, report, listeners } = self;
        if let Route::Waiting(signals) = route.replace(Route::Known(id)) {
            signals.into_iter().for_each(|signal| report(id, signal));
        }
        RtcChannel { channel, _listeners: listeners }
    }
}

/// A data channel as the ports use it.
pub(crate) struct RtcChannel {
    channel: RtcDataChannel,
    _listeners: Vec<EventListener>,
}

impl Channel for RtcChannel {
    fn send(&self, frame: &[u8]) -> Result<(), String> {
        self.channel.send_with_u8_array(frame).map_err(|error| format!("{error:?}"))
    }

    /// One that is not open yet takes nothing; its `open` event pumps it.
    fn buffered(&self) -> usize {
        match self.channel.ready_state() {
            RtcDataChannelState::Connecting => usize::MAX,
            _ => self.channel.buffered_amount() as usize,
        }
    }

    fn close(&self) {
        self.channel.close();
    }
}
