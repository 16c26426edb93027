// A short tone when the word changes: one for each kind, for those who look elsewhere.

const TONES = { danger: [220, 3], attention: [660, 2], ready: [880, 1], go: [990, 1], calm: [440, 1] }; // Hz, times
let context = null;

export function beep(tone) {
  context ??= new AudioContext();
  const [hertz, times] = TONES[tone] ?? TONES.calm;
  for (let i = 0; i < times; i++) {
    const begin = context.currentTime + 0.18 * i;
    const voice = new OscillatorNode(context, { frequency: hertz });
    const level = new GainNode(context, { gain: 0.12 });
    voice.connect(level).connect(context.destination);
    voice.start(begin);
    voice.stop(begin + 0.12);
  }
}
