"""Tried: an advantage for every chunk by a critic that is told state, objects and time (GAE, lambda in the environment variable CRITIC)."""
import collections
import numpy as np
import torch
from torch import nn
from policytrim_ros.policies.flow import Context


def features(seen, h, rollouts, limits, groups):
    if isinstance(seen, Context):
        parts = [seen.state.flatten(1)] + ([seen.keypoints.flatten(1)] if seen.keypoints is not None else [])
    else:
        parts = [seen.state.flatten(1), seen.objects.flatten(1)]
    return torch.cat([p.float() for p in parts], 1)


class Critic:
    def __init__(self, seed=0, lam=0.9, keep=8, warm=3, hidden=128, steps=300):
        self.lam, self.keep, self.warm, self.hidden, self.steps = lam, keep, warm, hidden, steps
        self.buffer = collections.deque(maxlen=keep)
        self.net = None
        self.rounds = 0
        self.gen = torch.Generator().manual_seed(seed)

    def build(self, d):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(d, self.hidden), nn.SiLU(), nn.Linear(self.hidden, self.hidden), nn.SiLU(), nn.Linear(self.hidden, 1))
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=1e-2)
        self.mean = self.std = None

    def rows(self, rollouts, limit):
        x = features(rollouts.trace.seen, None, rollouts, None, None)
        flat = [r for g in rollouts.results for r in g]
        # order of looks within an episode
        t = np.zeros(len(x)); k = np.zeros(len(x), int)
        counts = collections.Counter()
        for row in range(len(x)):
            e = rollouts.episode[row]; k[row] = counts[e]; counts[e] += 1
            t[row] = flat[e].looks[k[row]][0] / limit
        x = torch.cat([x, torch.from_numpy(np.stack([t, t * t], 1)).float()], 1)
        return x, k

    def value(self, x):
        with torch.no_grad():
            return self.net(((x - self.mean) / self.std).clamp(-5, 5))[:, 0].numpy().astype(np.float64)

    def advantages(self, rollouts, rewards, baselines, limit):
        """(B,) advantages of the chunks or None, and figures. rewards (E,), baselines (E,): mean of the group."""
        x, k = self.rows(rollouts, limit)
        found, figures = None, {}
        target = rewards[rollouts.episode]
        if self.net is not None:
            v = self.value(x)
            figures["critic_explained"] = float(1 - np.mean((target - v) ** 2) / np.var(target))
            if self.rounds >= self.warm:
                found = np.zeros(len(x))
                for e in range(len(rewards)):
                    rows = np.flatnonzero(rollouts.episode == e)
                    rows = rows[np.argsort(k[rows])]
                    vs = np.append(v[rows], rewards[e])
                    vs[0] = baselines[e] if False else vs[0]
                    delta = np.diff(vs); a = 0.0
                    for i in range(len(rows) - 1, -1, -1):
                        a = delta[i] + self.lam * a
                        found[rows[i]] = a
                figures["advantage_std"] = float(found.std())
        self.buffer.append((x, torch.from_numpy(target).float()))
        self.fit()
        self.rounds += 1
        return found, figures

    def fit(self):
        x = torch.cat([b[0] for b in self.buffer]); y = torch.cat([b[1] for b in self.buffer])
        if self.net is None:
            self.build(x.shape[1])
        if self.mean is None:
            self.mean, self.std = x.mean(0), x.std(0) + 1e-3
        xn = ((x - self.mean) / self.std).clamp(-5, 5)
        for _ in range(self.steps):
            i = torch.randint(len(xn), (256,), generator=self.gen)
            loss = ((self.net(xn[i])[:, 0] - y[i]) ** 2).mean()
            self.opt.zero_grad(); loss.backward(); self.opt.step()
