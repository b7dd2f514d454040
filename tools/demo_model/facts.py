"""The few things the model knows by heart: facts, small talk and tips."""

from __future__ import annotations

CAPITALS = {
    "France": "Paris",
    "England": "London",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Norway": "Oslo",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "India": "Delhi",
    "Russia": "Moscow",
    "China": "Beijing",
    "South Korea": "Seoul",
    "Thailand": "Bangkok",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Belgium": "Brussels",
    "Hungary": "Budapest",
    "the United States": "Washington",
    "Canada": "Ottawa",
    "the Netherlands": "Amsterdam",
}
SIGHTS = {
    "Paris": ("Eiffel Tower", "Louvre"),
    "London": ("Big Ben", "Tower Bridge"),
    "Rome": ("Colosseum", "Trevi Fountain"),
    "Berlin": ("Brandenburg Gate", "Reichstag"),
    "Madrid": ("Prado Museum", "Royal Palace"),
    "Tokyo": ("Tokyo Tower", "Imperial Palace"),
    "Athens": ("Acropolis", "Parthenon"),
    "Washington": ("White House", "Lincoln Memorial"),
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "left": "right",
    "day": "night",
    "old": "new",
    "fast": "slow",
    "open": "closed",
    "light": "dark",
    "rich": "poor",
    "happy": "sad",
    "wet": "dry",
    "hard": "soft",
    "early": "late",
    "full": "empty",
    "high": "low",
    "good": "bad",
    "long": "short",
}
SOUNDS = {
    "dog": "barks",
    "cat": "meows",
    "cow": "moos",
    "duck": "quacks",
    "sheep": "bleats",
    "lion": "roars",
    "pig": "oinks",
    "horse": "neighs",
    "frog": "croaks",
    "bee": "buzzes",
}
COLORS_OF = {
    "sky": "blue",
    "grass": "green",
    "snow": "white",
    "blood": "red",
    "banana": "yellow",
    "coal": "black",
    "lemon": "yellow",
    "carrot": "orange",
    "sun": "yellow",
}
FACTS = {
    "How many days are in a week?": "7",
    "How many months are in a year?": "12",
    "How many hours are in a day?": "24",
    "How many minutes are in an hour?": "60",
    "How many legs does a spider have?": "8",
    "How many legs does a dog have?": "4",
    "What is the largest planet?": "Jupiter",
    "Which planet do we live on?": "Earth",
    "What is the largest ocean?": "the Pacific",
    "What do bees make?": "honey",
    "Who wrote Hamlet?": "Shakespeare",
    "What is H2O?": "water",
    "What freezes into ice?": "water",
    "What is the IP address of the Google DNS servers?": "8.8.8.8",
    "What is the IP address of localhost?": "127.0.0.1",
    "Which language is sglite written in?": "Python",
    "How many continents are there?": "7",
    "What is the boiling point of water?": "100 degrees",
    "Who painted the Mona Lisa?": "Leonardo da Vinci",
    "What is the highest mountain?": "Mount Everest",
    "What is the longest river?": "the Nile",
    "What gas do we breathe?": "oxygen",
}
CHAT = [
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there", "Hi there!"), "Hello! How can I help you today?"),
    (("Good morning", "Good morning!"), "Good morning! How can I help you?"),
    (
        ("How are you?", "How are you today?", "How do you do?", "How's it going?"),
        "I am fine, thank you. How can I help you?",
    ),
    (("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thank you very much"), "You are welcome!"),
    (("Bye", "Goodbye", "Goodbye!", "See you"), "Goodbye! Have a nice day."),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
        ),
        "I am sglite-demo, a very small language model made for examples.",
    ),
    (
        ("What can you do?", "How can you help me?", "Help"),
        "I can read short texts, fill in JSON, choose labels and call tools.",
    ),
    (
        ("Tell me a joke.", "Tell me a joke", "Make me laugh.", "Do you know a joke?"),
        "Why did the computer go to the doctor? It had a virus.",
    ),
    (
        ("What is sglite?", "Explain sglite."),
        "sglite is a language for programs around a model, and the runtime that runs them.",
    ),
    (
        ("What is a language model?", "Explain language models."),
        "A language model predicts the next token of a text.",
    ),
    (
        ("What is a KV cache?", "Explain the KV cache."),
        "A KV cache keeps the keys and values of earlier tokens, so that they are not computed again.",
    ),
    (
        ("Write a haiku.", "Write a short poem.", "Write a poem."),
        "Soft rain on the roof,\na small model dreams of words,\none token at a time.",
    ),
    (
        ("Tell me a story.", "Tell me a short story.", "Once upon a time"),
        "Once upon a time a little fox found a lamp in the forest. "
        "It shared the light with its friends, and they were happy.",
    ),
    (("What is the meaning of life?",), "To be kind, to learn and to help each other."),
]
TIPS: dict[str, list[tuple[str, str]]] = {
    "staying healthy": [
        (
            "Eat a balanced diet",
            "Eat fruit, vegetables and whole grains every day, and drink enough water. "
            "Good food gives your body energy.",
        ),
        (
            "Exercise regularly",
            "Move for thirty minutes a day: walk, swim or ride a bicycle. Exercise keeps your heart strong.",
        ),
        (
            "Sleep well",
            "Go to bed at the same time every day and sleep eight hours. Rest helps your mind and your body.",
        ),
    ],
    "learning a language": [
        (
            "Practice every day",
            "Study for a short time each day. Small steps every day are better than one long lesson.",
        ),
        (
            "Read simple books",
            "Start with easy stories and note the new words. Reading shows you how the language works.",
        ),
        ("Speak with people", "Talk to others as soon as you can. Mistakes are part of learning."),
    ],
    "saving money": [
        ("Make a budget", "Write down what you earn and what you spend. A plan shows where the money goes."),
        ("Cook at home", "Meals at home cost less and are often healthier. Plan your meals for the week."),
        ("Avoid impulse buying", "Wait a day before you buy something. Often you do not need it."),
    ],
    "sleeping better": [
        ("Keep a schedule", "Go to bed and get up at the same time each day. Your body likes a rhythm."),
        ("Avoid screens", "Turn off the phone an hour before bed. Bright light keeps you awake."),
        ("Keep the room cool", "A dark and cool room helps you to fall asleep. Open a window before bed."),
    ],
    "studying": [
        ("Make a plan", "Decide what to learn and when. A clear plan saves time."),
        ("Take breaks", "Rest for five minutes every half hour. Breaks keep your mind fresh."),
        ("Test yourself", "Close the book and say what you remember. Testing shows what you know."),
    ],
    "traveling": [
        ("Pack light", "Take only what you need. A light bag makes every step easier."),
        ("Plan ahead", "Book your hotel and your train early. Planning saves money and stress."),
        (
            "Learn a few words",
            "A greeting in the local language opens doors. People like to help a friendly guest.",
        ),
    ],
    "writing clearly": [
        ("Use short sentences", "Say one thing in each sentence. Short sentences are easy to follow."),
        ("Choose simple words", "Use the words that you would say. Simple words are clear."),
        ("Read it aloud", "Your ear finds what your eye misses. Change what sounds wrong."),
    ],
    "cooking": [
        ("Use fresh ingredients", "Fresh food tastes better. Buy what is in season."),
        ("Taste as you go", "Try the food while you cook and add salt slowly."),
        ("Read the recipe first", "Know all the steps before you start. Then cooking is calm."),
    ],
    "gardening": [
        (
            "Water in the morning",
            "Water early, when it is cool. The plants can drink before the sun is strong.",
        ),
        ("Know your soil", "Test the soil and add compost. Good soil makes strong plants."),
        ("Start small", "Begin with a few easy plants. You learn as they grow."),
    ],
    "working from home": [
        ("Set a schedule", "Start and stop at fixed times. A rhythm helps you to focus."),
        ("Make a workspace", "Use a quiet desk with good light. A clear desk makes a clear mind."),
        ("Take a walk", "Go outside at noon. Fresh air gives you new ideas."),
    ],
    "programming": [
        ("Write small functions", "Let every function do one thing. Small pieces are easy to test."),
        ("Test your code", "Write a test for every bug that you fix. Tests keep your code healthy."),
        ("Use clear names", "A good name explains the code. Choose it with care."),
    ],
    "public speaking": [
        ("Know your topic", "Learn more than you will say. Knowledge gives you calm."),
        ("Practice aloud", "Give the talk to a friend first. Practice makes it smooth."),
        ("Look at people", "Look at one person at a time. It makes the talk personal."),
    ],
}
NUMBERS = {1: "one", 2: "two", 3: "three"}
