"""The 21 data sets of LongBench v1: prompt, answer length, metric, category, chat wrapping.

Source: THUDM/LongBench at 2e00731f (``config/dataset2prompt.json``, ``config/dataset2maxlen.json``,
``eval.py``, ``pred.py``). The texts are the benchmark's definition, misprints and stray spaces
included: "asconcisely", the space after a line break in qasper, trailing spaces.
"""

from __future__ import annotations

from dataclasses import dataclass

CATEGORIES = ("SQA", "MQA", "SUM", "FSL", "ST", "CC")
"""Single- and multi-document QA, summarisation, few-shot, synthetic, code completion."""

_QASPER_RULE = (
    "Answer the question {}as concisely as you can, using a single phrase or sentence if possible."
    " If the question cannot be answered based on the information in the article, write"
    ' "unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable".'
    " Do not provide any explanation."
)
_PASSAGES_RULE = (
    "Answer the question based on the given passages. Only give me the answer and do not output"
    " any other words.\n\n"
)

NARRATIVEQA = (
    "You are given a story, which can be either a novel or a movie script, and a question. Answer"
    " the question asconcisely as you can, using a single phrase if possible. Do not provide any"
    " explanation.\n\nStory: {context}\n\nNow, answer the question based on the story asconcisely"
    " as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion:"
    " {input}\n\nAnswer:"
)
QASPER = (
    "You are given a scientific article and a question. "
    + _QASPER_RULE.format("")
    + "\n\nArticle: {context}\n\n "
    + _QASPER_RULE.format("based on the above article ")
    + "\n\nQuestion: {input}\n\nAnswer:"
)
MULTIFIELDQA_EN = (
    "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following"
    " question based on the above text, only give me the answer and do not output any other"
    " words.\n\nQuestion: {input}\nAnswer:"
)
MULTIFIELDQA_ZH = (
    "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，"
    "只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答："
)
PASSAGES = (
    _PASSAGES_RULE
    + "The following are given passages.\n{context}\n\n"
    + _PASSAGES_RULE
    + "Question: {input}\nAnswer:"
)
DUREADER = (
    "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n"
    "问题：{input}\n回答："
)
GOV_REPORT = (
    "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
    "Report:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:"
)
QMSUM = (
    "You are given a meeting transcript and a query containing a question or instruction. Answer"
    " the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based"
    " on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:"
)
MULTI_NEWS = (
    "You are given several news passages. Write a one-page summary of all news. \n\n"
    "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:"
)
VCSUM = (
    "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n"
    "会议总结："
)
TREC = (
    "Please determine the type of the question below. Here are some examples of questions.\n\n"
    "{context}\n{input}"
)
TRIVIAQA = (
    "Answer the question based on the given passage. Only give me the answer and do not output any"
    " other words. The following are some examples.\n\n{context}\n\n{input}"
)
SAMSUM = (
    "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
    "{context}\n\n{input}"
)
LSHT = "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}"
PASSAGE_COUNT = (
    "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates."
    " Please carefully read these paragraphs and determine how many unique paragraphs there are"
    " after removing duplicates. In other words, how many non-repeating paragraphs are there in"
    " total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after removing"
    " duplicates. The output format should only contain the number, such as 1, 2, 3, and so"
    " on.\n\nThe final answer is: "
)
PASSAGE_RETRIEVAL_EN = (
    "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which"
    " paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\n"
    "Please enter the number of the paragraph that the abstract is from. The answer format must be"
    ' like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: '
)
PASSAGE_RETRIEVAL_ZH = (
    "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
    "下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。"
    '答案格式必须是"段落1"，"段落2"等格式\n\n答案是：'
)
LCC = "Please complete the code given below. \n{context}Next line of code:\n"
REPOBENCH_P = "Please complete the code given below. \n{context}{input}Next line of code:\n"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set: everything about it that is not in its records."""

    prompt: str
    max_new_tokens: int
    metric: str
    category: str
    language: str = "en"
    in_e: bool = False
    """Part of LongBench-E."""

    @property
    def chat(self) -> bool:
        """Few-shot and code prompts are given to the model bare, even to a chat model."""
        return self.category not in ("FSL", "CC")

    @property
    def first_line(self) -> bool:
        """Only the first non-empty line of a few-shot answer is scored."""
        return self.category == "FSL"

    def split(self, context: str, question: str) -> tuple[str, str]:
        """The filled prompt in two parts, cut right after the context slot."""
        head, _, tail = self.prompt.partition("{context}")
        before, slot, after = tail.partition("{input}")
        return head + context, before + (question if slot else "") + after


DATASETS: dict[str, Dataset] = {
    "narrativeqa": Dataset(NARRATIVEQA, 128, "qa_f1", "SQA"),
    "qasper": Dataset(QASPER, 128, "qa_f1", "SQA", in_e=True),
    "multifieldqa_en": Dataset(MULTIFIELDQA_EN, 64, "qa_f1", "SQA", in_e=True),
    "multifieldqa_zh": Dataset(MULTIFIELDQA_ZH, 64, "qa_f1_zh", "SQA", "zh"),
    "hotpotqa": Dataset(PASSAGES, 32, "qa_f1", "MQA", in_e=True),
    "2wikimqa": Dataset(PASSAGES, 32, "qa_f1", "MQA", in_e=True),
    "musique": Dataset(PASSAGES, 32, "qa_f1", "MQA"),
    "dureader": Dataset(DUREADER, 128, "rouge_zh", "MQA", "zh"),
    "gov_report": Dataset(GOV_REPORT, 512, "rouge", "SUM", in_e=True),
    "qmsum": Dataset(QMSUM, 512, "rouge", "SUM"),
    "multi_news": Dataset(MULTI_NEWS, 512, "rouge", "SUM", in_e=True),
    "vcsum": Dataset(VCSUM, 512, "rouge_zh", "SUM", "zh"),
    "trec": Dataset(TREC, 64, "classification", "FSL", in_e=True),
    "triviaqa": Dataset(TRIVIAQA, 32, "qa_f1", "FSL", in_e=True),
    "samsum": Dataset(SAMSUM, 128, "rouge", "FSL", in_e=True),
    "lsht": Dataset(LSHT, 64, "classification", "FSL", "zh"),
    "passage_count": Dataset(PASSAGE_COUNT, 32, "count", "ST", in_e=True),
    "passage_retrieval_en": Dataset(PASSAGE_RETRIEVAL_EN, 32, "retrieval", "ST", in_e=True),
    "passage_retrieval_zh": Dataset(PASSAGE_RETRIEVAL_ZH, 32, "retrieval_zh", "ST", "zh"),
    "lcc": Dataset(LCC, 64, "code_sim", "CC", "code", in_e=True),
    "repobench-p": Dataset(REPOBENCH_P, 64, "code_sim", "CC", "code", in_e=True),
}

E_DATASETS: tuple[str, ...] = tuple(name for name, dataset in DATASETS.items() if dataset.in_e)
