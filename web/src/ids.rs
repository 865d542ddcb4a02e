//! The page's element ids and data attributes that tests rely on. They are an interface: change them with the tests.
//!
//! | element | what it is |
//! | --- | --- |
//! | `#unsupported[data-missing]` | shown instead of the page when the browser lacks something (index.html) |
//! | `#engine[data-state][data-backend]` | `starting`, `ready` or `failed`; `CPU` or `WebGPU` |
//! | `#phase[data-phase]` | `lobby`, `loading`, `sampling`, `running`, `paused`, `finished`, `stopped`, `failed` |
//! | `#model-default`, `#model-url-choice`, `#model-folder-choice` | radio buttons of step 1 |
//! | `#model-url`, `#model-url-use`, `#model-folder`, `#model-files` | its inputs |
//! | `#model[data-state]` | `none`, `busy`, `ready` or `error` |
//! | `#text-sample`, `#text-paste-choice`, `#text-file-choice` | radio buttons of step 2 |
//! | `#text-paste`, `#text-paste-use`, `#text-file` | its inputs |
//! | `#text[data-state]` | as `#model` |
//! | `#join-link`, `#join-copy`, `#join-qr` | the link of the room |
//! | `#room[data-state]` | `opening`, `open`, `retrying` or `failed` |
//! | `#devices [data-peer][data-state][data-backend][data-blocks]` | a row a device; `data-peer` is `host` or a number |
//! | `#settings`, `#set-<field>`, `#set-reset` | the settings; targets are `#set-target-<name>` |
//! | `#start`, `#pause`, `#resume`, `#stop`, `#again` | buttons of the run |
//! | `#loss[data-step][data-steps][data-loss]` | the chart; `data-step` counts complete steps |
//! | `#loss-table tr[data-step][data-loss]` | every loss of the run, with all digits |
//! | `#sample-before`, `#sample-after` | what the model writes |
//! | `#download` | the adapter as a zip archive |
//! | `#generate-prompt`, `#generate-tokens`, `#generate-temperature`, `#generate`, `#generated[data-done]` | try it |
//! | `#error-engine`, `-room`, `-model`, `-text`, `-settings`, `-run`, `-peer`, `-generate` | errors in words |
//! | `#stage[data-state][data-backend][data-blocks]` | a joiner: `starting`, `joining`, `connecting`, `waiting`, `loading`, `training`, `idle`, `ended`, `left` |
//! | `#join-name`, `#join-leave`, `#join-retry`, `#join-error` | a joiner's controls and its error |
