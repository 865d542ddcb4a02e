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
//! | `#model-family`, `#model-memory tr[data-phones][data-phone][data-own]` | its card; what each phone and this device keep, in bytes |
//! | `#text-sample`, `#text-paste-choice`, `#text-file-choice` | radio buttons of step 2 |
//! | `#text-paste`, `#text-file` | its inputs |
//! | `#text[data-state]` | as `#model` |
//! | `#text-mapping tr[data-column][data-role]`, `#map-<place>` | a row a column, and the choice of its role |
//! | `#text-form`, `#text-ignored`, `#text-labels-unused` | what the text is, and what of it is not read |
//! | `#map-format`, `#map-labels`, `#text-problems` | how it is cut and its labels are read, what is wrong with it |
//! | `#text-samples`, `-tokens`, `-validation`, `-truncated` | what it is for this model |
//! | `#text-labels [data-label][data-count]`, `#text-lengths[data-median][data-longest]` | classes, and lengths of samples |
//! | `#join-link`, `#join-copy`, `#join-qr` | the link of the room |
//! | `#room[data-state]` | `opening`, `open`, `retrying` or `failed` |
//! | `#devices [data-peer][data-state][data-backend][data-blocks]` | a row a device; `data-peer` is `host` or a number |
//! | `#left` | that a device went out of the run, while the others go on |
//! | `#settings`, `#set-<field>`, `#set-reset` | the settings; targets are `#set-target-<name>` of the model, and `#set-target-all-linear` |
//! | `#start`, `#pause`, `#resume`, `#stop`, `#again` | buttons of the run |
//! | `#again-sure`, `#again-stay` | answers where the adapter was not downloaded |
//! | `#loss[data-step][data-steps][data-loss]` | the chart; `data-step` counts complete steps |
//! | `#loss-table tr[data-step][data-loss]` | every loss of the run, with all digits |
//! | `#judged[data-step][data-loss]` | what the model is worth on samples that it is not trained on, as last judged |
//! | `#judged-table tr[data-step][data-loss][data-accuracy][data-f1][data-pearson][data-spearman]` | every judgement, with all digits |
//! | `#labels-only` | in place of samples where the model writes none |
//! | `#sample-before`, `#sample-after` | what the model writes |
//! | `#download` | the adapter as a zip archive |
//! | `#generate-prompt`, `#generate-tokens`, `#generate-temperature`, `#generate`, `#generated[data-done]` | try it |
//! | `#talk li[data-role]`, `#talk-again` | the conversation so far, with a model that has a chat template |
//! | `#storage[data-used]`, `#storage-clear` | what this device keeps of models; on both pages |
//! | `#error-engine`, `-room`, `-model`, `-text`, `-settings`, `-run`, `-peer`, `-generate`, `-storage` | errors in words |
//! | `#stage[data-state][data-backend][data-blocks]` | a joiner: `starting`, `joining`, `connecting`, `waiting`, `measuring`, `loading`, `training`, `idle`, `standby`, `silent` (the host is not heard), `ended`, `left` |
//! | `#join-name`, `#join-leave`, `#join-retry`, `#join-error` | a joiner's controls and its error |
